//! Sockets of the host that wait for clients, read by netlink `sock_diag`
//! (sock_diag(7)), which filters by state in the kernel: a host with a hundred
//! thousand connections costs no more than one with none.

use std::{
    collections::HashMap,
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use highwire_api::{PortKey, Protocol};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use rtnetlink::sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use thiserror::Error;

/// A socket that waits for clients: TCP in state LISTEN, or UDP bound and not
/// connected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// TCP or UDP.
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

    /// Whether it would get packets for this address.
    #[must_use]
    pub fn covers(&self, address: IpAddr) -> bool {
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
pub enum ListenerError {
    /// The netlink socket cannot be used.
    #[error(
        "cannot ask the kernel for its sockets: {0}; are inet_diag, tcp_diag and udp_diag in this kernel?"
    )]
    Ask(#[from] io::Error),
    /// The answer is not understood.
    #[error("cannot read the kernel's answer about sockets: {0}")]
    Read(#[from] netlink_packet_core::DecodeError),
}

/// All listeners of this network namespace, sorted.
///
/// # Errors
/// If the kernel does not answer.
pub fn scan() -> Result<Vec<Listener>, ListenerError> {
    let mut listeners = Vec::new();
    for family in [AF_INET, AF_INET6] {
        dump(family, Protocol::Tcp, &mut listeners)?;
        dump(family, Protocol::Udp, &mut listeners)?;
    }
    listeners.sort();
    Ok(listeners)
}

fn dump(family: u8, protocol: Protocol, found: &mut Vec<Listener>) -> Result<(), ListenerError> {
    let (number, states) = match protocol {
        Protocol::Tcp => (IPPROTO_TCP, StateFlags::LISTEN),
        // An unconnected UDP socket is in TCP_CLOSE, a connected one in
        // TCP_ESTABLISHED (kernel net/ipv4/udp.c).
        _ => (IPPROTO_UDP, StateFlags::CLOSE),
    };
    let socket_id = if family == AF_INET {
        SocketId::new_v4()
    } else {
        SocketId::new_v6()
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let extensions = ExtensionFlags::empty();
    let request = InetRequest {
        family,
        protocol: number,
        extensions,
        states,
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.extend(listener(protocol, &response));
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                _ => {}
            }
            // Messages are aligned to four bytes (netlink(7)).
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn listener(protocol: Protocol, response: &InetResponse) -> Option<Listener> {
    let id = &response.header.socket_id;
    (id.source_port != 0).then(|| Listener {
        protocol,
        bound: SocketAddr::new(id.source_address, id.source_port),
        device: Some(id.interface_id).filter(|index| *index != 0),
        v6_only: response
            .nlas
            .iter()
            .any(|nla| matches!(nla, Nla::SkV6Only(true))),
        uid: response.header.uid,
        inode: response.header.inode,
    })
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

/// The ports the kernel gives to clients that name none
/// (`net.ipv4.ip_local_port_range`, for both families).
#[must_use]
pub fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text
        .split_whitespace()
        .filter_map(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) => first..=last,
        _ => 32768..=60999,
    }
}

/// Keeps clients from being taken for servers.
///
/// A resolver's UDP socket is bound to an ephemeral port and unconnected for as
/// long as its question is open: by its state it is a server. It would make a
/// Service on that port come and go. So a UDP socket on an ephemeral port counts
/// only once it has been there for [`Patience::UDP_AGE`].
#[derive(Debug, Default)]
pub struct Patience {
    first_seen: HashMap<u32, Instant>,
}

impl Patience {
    /// How long a UDP socket on an ephemeral port must exist to count.
    pub const UDP_AGE: Duration = Duration::from_secs(4);

    /// Leaves out what may be a client. To be called with every scan.
    pub fn settle(
        &mut self,
        listeners: Vec<Listener>,
        ephemeral: &RangeInclusive<u16>,
        now: Instant,
    ) -> Vec<Listener> {
        let doubtful = |listener: &Listener| {
            listener.protocol == Protocol::Udp && ephemeral.contains(&listener.bound.port())
        };
        let seen: HashMap<u32, Instant> = listeners
            .iter()
            .filter(|listener| doubtful(listener))
            .map(|listener| {
                let inode = listener.inode;
                (inode, self.first_seen.get(&inode).copied().unwrap_or(now))
            })
            .collect();
        self.first_seen = seen;
        listeners
            .into_iter()
            .filter(|listener| {
                let since = self.first_seen.get(&listener.inode).copied().unwrap_or(now);
                !doubtful(listener) || now.duration_since(since) >= Self::UDP_AGE
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(protocol: Protocol, bound: &str, v6_only: bool, inode: u32) -> Listener {
        Listener {
            protocol,
            bound: bound.parse().unwrap(),
            v6_only,
            device: None,
            uid: 0,
            inode,
        }
    }

    #[test]
    fn covers_what_it_would_answer() {
        let node4: IpAddr = "192.0.2.11".parse().unwrap();
        let node6: IpAddr = "2001:db8:1::11".parse().unwrap();
        for (bound, v6_only, four, six) in [
            ("0.0.0.0:80", false, true, false),
            ("[::]:80", false, true, true),
            ("[::]:80", true, false, true),
            ("192.0.2.11:80", false, true, false),
            ("[::ffff:192.0.2.11]:80", false, true, false),
            ("[2001:db8:1::11]:80", false, false, true),
            ("127.0.0.1:80", false, false, false),
            ("[::1]:80", false, false, false),
            ("203.0.113.1:80", false, false, false),
        ] {
            let listener = listener(Protocol::Tcp, bound, v6_only, 1);
            assert_eq!(
                (listener.covers(node4), listener.covers(node6)),
                (four, six),
                "{listener}"
            );
        }
    }

    #[test]
    fn a_resolvers_socket_does_not_count_but_a_server_does() {
        let (resolver, server) = (
            listener(Protocol::Udp, "0.0.0.0:40000", false, 1),
            listener(Protocol::Udp, "0.0.0.0:53", false, 2),
        );
        let tcp = listener(Protocol::Tcp, "0.0.0.0:40001", false, 3);
        let all = vec![resolver.clone(), server.clone(), tcp.clone()];
        let mut patience = Patience::default();
        let (ephemeral, start) = (32768..=60999, Instant::now());
        let mut counted = |listeners: Vec<Listener>, seconds| {
            patience.settle(listeners, &ephemeral, start + Duration::from_secs(seconds))
        };
        assert_eq!(counted(all.clone(), 0), [server.clone(), tcp.clone()]);
        assert_eq!(
            counted(all.clone(), 2),
            [server.clone(), tcp.clone()],
            "scans may be close"
        );
        let later = Listener {
            inode: 9,
            ..resolver.clone()
        };
        assert_eq!(
            counted(vec![later.clone()], 5),
            [],
            "another socket starts anew"
        );
        assert_eq!(counted(vec![later.clone()], 9), [later], "it has stayed");
    }
}
