//! Sockets of the host that wait for clients. TCP and UDP are read by netlink `sock_diag`
//! (sock_diag(7)), which filters by state in the kernel: a host with a hundred
//! thousand connections costs no more than one with none.

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::{IpAddr, SocketAddr},
};

use highwire_api::{PortKey, Protocol};
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use thiserror::Error;

use crate::netlink::{NetlinkError, ask};

/// A socket that waits for clients: TCP or SCTP that listens, or UDP bound and not
/// connected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// What it is bound to; the unspecified address means all.
    pub bound: SocketAddr,
    /// Whether an IPv6 wildcard takes no IPv4 clients (`IPV6_V6ONLY`).
    pub v6_only: bool,
    /// The interface it is bound to, by index (`SO_BINDTODEVICE`); it gets no packets
    /// that come by another.
    pub device: Option<u32>,
    /// The user it belongs to.
    pub uid: u32,
    /// Tells it from a later one on the same port.
    pub inode: u32,
}

impl Listener {
    /// Its port; `None` for what is no port.
    #[must_use]
    pub fn port(&self) -> Option<PortKey> {
        PortKey::new(self.protocol, i32::from(self.bound.port()))
    }

    /// Whether it would get packets for this address, which these devices have.
    #[must_use]
    pub fn covers(&self, address: IpAddr, devices: &BTreeSet<u32>) -> bool {
        if self.device.is_some_and(|device| !devices.contains(&device)) {
            return false;
        }
        match (self.bound.ip().to_canonical(), address) {
            (IpAddr::V4(bound), IpAddr::V4(address)) => bound.is_unspecified() || bound == address,
            (IpAddr::V6(bound), IpAddr::V6(address)) => bound.is_unspecified() || bound == address,
            (IpAddr::V6(bound), IpAddr::V4(_)) => bound.is_unspecified() && !self.v6_only,
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket {} uid {}", self.bound, self.uid)
    }
}

/// Why the sockets cannot be read.
#[derive(Debug, Error)]
#[error(
    "cannot ask the kernel for its sockets: {0}; are inet_diag, tcp_diag and udp_diag in this kernel?"
)]
pub struct ListenerError(#[from] NetlinkError);

/// All listeners of this network namespace, sorted.
///
/// # Errors
/// If the kernel does not answer.
pub fn scan() -> Result<Vec<Listener>, ListenerError> {
    // Where the kernel has no SCTP there is no such file.
    let sctp = fs::read_to_string(SCTP_ENDPOINTS).unwrap_or_default();
    let mut listeners = parse_sctp(&sctp);
    let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(NetlinkError::from)?;
    for (family, socket_id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        for (protocol, number, states) in [
            (Protocol::Tcp, IPPROTO_TCP, StateFlags::LISTEN),
            // An unconnected UDP socket is in TCP_CLOSE, a connected one in
            // TCP_ESTABLISHED (kernel net/ipv4/udp.c).
            (Protocol::Udp, IPPROTO_UDP, StateFlags::CLOSE),
        ] {
            let request = SockDiagMessage::InetRequest(InetRequest {
                family,
                protocol: number,
                extensions: ExtensionFlags::empty(),
                states,
                socket_id: socket_id.clone(),
            });
            ask(&socket, NLM_F_DUMP, request, |message| {
                if let SockDiagMessage::InetResponse(response) = message {
                    listeners.extend(listener(protocol, &response));
                }
            })?;
        }
    }
    listeners.sort();
    Ok(listeners)
}

/// The socket that an answer of the kernel stands for; `None` for one without a port.
#[must_use]
pub fn listener(protocol: Protocol, response: &InetResponse) -> Option<Listener> {
    let id = &response.header.socket_id;
    let v6_only = |nla: &Nla| matches!(nla, Nla::SkV6Only(true));
    (id.source_port != 0).then(|| Listener {
        protocol,
        bound: SocketAddr::new(id.source_address, id.source_port),
        device: Some(id.interface_id).filter(|index| *index != 0),
        v6_only: response.nlas.iter().any(v6_only),
        uid: response.header.uid,
        inode: response.header.inode,
    })
}

/// One line per endpoint (kernel net/sctp/proc.c `sctp_eps_seq_show`). It is there once
/// the kernel has SCTP, which the first SCTP socket loads.
const SCTP_ENDPOINTS: &str = "/proc/thread-self/net/sctp/eps";

/// `SCTP_SS_LISTENING` (kernel include/net/sctp/constants.h).
const SCTP_LISTENING: &str = "10";

/// The SCTP sockets that listen, one per address that they are bound to. Lines of
/// `ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS`, after one that says so.
#[must_use]
pub fn parse_sctp(text: &str) -> Vec<Listener> {
    let endpoint = |line: &str| -> Option<Vec<Listener>> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, SCTP_LISTENING, _, port, uid, inode, addresses @ ..] = &fields[..] else {
            return None;
        };
        let (port, uid, inode) = (port.parse().ok()?, uid.parse().ok()?, inode.parse().ok()?);
        let addresses = addresses.iter().filter_map(|ip| ip.parse().ok());
        let listener = |ip: IpAddr| Listener {
            protocol: Protocol::Sctp,
            bound: SocketAddr::new(ip, port),
            // The file does not say; the most that can be is assumed.
            v6_only: false,
            device: None,
            uid,
            inode,
        };
        Some(addresses.map(listener).collect())
    };
    text.lines()
        .skip(1)
        .filter_map(endpoint)
        .flatten()
        .collect()
}

/// The program that has the socket, as far as this process may see it: one in a container
/// sees its own only.
#[must_use]
pub fn program(inode: u32) -> Option<String> {
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.map(|process| process.path()).find_map(|process| {
        let mut files = fs::read_dir(process.join("fd")).ok()?.flatten();
        files.find(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == &*socket))?;
        let name = fs::read_to_string(process.join("comm")).ok()?;
        let pid = process.file_name()?.to_str()?;
        Some(format!("{}, process {pid}", name.trim()))
    })
}

#[cfg(test)]
#[path = "listeners_tests.rs"]
mod tests;
