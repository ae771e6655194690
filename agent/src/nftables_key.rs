//! Keys of nftables' sets and maps as the kernel has them: each part as in a packet's
//! header, padded to four bytes (kernel net/netfilter/nf_tables_api.c).

use std::net::IpAddr;

use highwire_api::Protocol;

/// `ip daddr`, or `ip6 daddr`.
#[must_use]
pub fn address(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// `meta l4proto . th dport`.
#[must_use]
pub fn protocol_and_port(protocol: Protocol, port: u16) -> [u8; 8] {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let [high, low] = port.to_be_bytes();
    [number, 0, 0, 0, high, low, 0, 0]
}
