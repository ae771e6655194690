//! Sockets of the host that wait for clients, read by netlink `sock_diag`
//! (sock_diag(7)), which filters by state in the kernel: a host with a hundred
//! thousand connections costs no more than one with none.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use highwire_api::{PortKey, Protocol};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use thiserror::Error;

use super::{netlink::DumpError, sctp};

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
pub struct ListenerError(#[from] DumpError);

/// All listeners of this network namespace, sorted.
///
/// # Errors
/// If the kernel does not answer.
pub fn scan() -> Result<Vec<Listener>, ListenerError> {
    let mut listeners = Vec::new();
    for family in [AF_INET, AF_INET6] {
        list(family, Protocol::Tcp, &mut listeners)?;
        list(family, Protocol::Udp, &mut listeners)?;
    }
    listeners.extend(sctp::listeners());
    listeners.sort();
    Ok(listeners)
}

fn list(family: u8, protocol: Protocol, found: &mut Vec<Listener>) -> Result<(), DumpError> {
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
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: number,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    });
    super::netlink::dump(NETLINK_SOCK_DIAG, request, |message| {
        if let SockDiagMessage::InetResponse(response) = message {
            found.extend(listener(protocol, &response));
        }
    })
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

/// The ports that the kernel gives to clients which name none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ephemeral {
    range: RangeInclusive<u16>,
    /// What an admin keeps out of it.
    reserved: Vec<RangeInclusive<u16>>,
}

impl Ephemeral {
    /// Those of this host: `net.ipv4.ip_local_port_range` without
    /// `net.ipv4.ip_local_reserved_ports`, both for both families (kernel
    /// Documentation/networking/ip-sysctl.rst).
    #[must_use]
    pub fn of_host() -> Self {
        let read = |name: &str| {
            let path = format!("/proc/sys/net/ipv4/{name}");
            fs::read_to_string(path).unwrap_or_default()
        };
        Self::parse(
            &read("ip_local_port_range"),
            &read("ip_local_reserved_ports"),
        )
    }

    fn parse(range: &str, reserved: &str) -> Self {
        let numbers: Vec<u16> = range
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        let ranges = reserved.trim().split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        Self {
            range: match numbers[..] {
                [first, last] => first..=last,
                _ => 32768..=60999,
            },
            reserved: ranges.collect(),
        }
    }

    /// Whether a socket on the port may be a client's.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }

    /// Whether nothing tells the socket from a client's.
    #[must_use]
    pub fn may_be_clients(&self, listener: &Listener) -> bool {
        // A server that is bound to one of the host's addresses was told to be.
        listener.protocol == Protocol::Udp
            && listener.bound.ip().to_canonical().is_unspecified()
            && self.contains(listener.bound.port())
    }
}

/// Keeps clients from being taken for servers.
///
/// A UDP client's socket (a resolver's, QUIC) is bound to every address and an ephemeral
/// port, and not connected: by its state it is a server, and nothing that the kernel tells
/// says otherwise. So it counts only once it has stayed for [`Patience::UDP_AGE`]: as long
/// as it is there the kernel gives it what comes for the port, whatever it is.
///
/// An admin can rule that out: the kernel gives no client a port of
/// `net.ipv4.ip_local_reserved_ports`, so a socket there is a server's, at once.
#[derive(Debug, Default)]
pub struct Patience {
    first_seen: HashMap<u32, Instant>,
}
impl Patience {
    /// How long a UDP socket that may be a client's must exist to count. Resolvers wait for
    /// answers no longer, and most QUIC connections are over.
    pub const UDP_AGE: Duration = Duration::from_secs(30);

    /// Leaves out what may be a client. To be called with every scan.
    pub fn settle(
        &mut self,
        listeners: Vec<Listener>,
        ephemeral: &Ephemeral,
        now: Instant,
    ) -> Vec<Listener> {
        let doubtful = |listener: &Listener| ephemeral.may_be_clients(listener);
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
#[path = "listeners_tests.rs"]
mod tests;
