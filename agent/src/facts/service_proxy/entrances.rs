//! Which ports of Services kube-proxy has programmed, by what it makes for each: one
//! question to the kernel about each port, and nothing is listed.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
};

use data_encoding::BASE32;
use highwire_api::{Family, Protocol, node::ProxyMode};
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage,
    NetfilterProtoFamily::{self, IPv4, IPv6},
    nftables::{
        ChainAttribute, ChainMessage, DataAttribute, ListAttribute, NfTablesMessage,
        SetElementAttribute, SetElementList, SetElementMessage,
    },
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use ring::digest::{SHA256, digest};

use crate::{
    facts::endpoints::ServicePortName,
    netlink::ask,
    nftables_key::{address, protocol_and_port},
};

/// Where kube-proxy takes connections to a port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entrance {
    /// The address and port. It nearly always distinguishes two of them, and costs less to
    /// compare than names.
    pub socket: SocketAddr,
    /// The port of the Service.
    pub port_name: ServicePortName,
    /// Its protocol.
    pub protocol: Protocol,
    /// Whether it is a ClusterIP or a NodePort.
    pub kind: EntranceKind,
}

/// The kind of an [`Entrance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntranceKind {
    /// The ClusterIP.
    ClusterIp,
    /// The NodePort, at an address of the node.
    NodePort,
}

impl Entrance {
    /// The family of its address.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.socket.ip())
    }

    /// The chain that kube-proxy makes for it in iptables mode, if the Service has
    /// endpoints (Kubernetes pkg/proxy/iptables/proxier.go, `portProtoHash`).
    fn chain(&self) -> String {
        let prefix = match self.kind {
            EntranceKind::ClusterIp => "KUBE-SVC",
            EntranceKind::NodePort => "KUBE-EXT",
        };
        let ServicePortName { service, port } = &self.port_name;
        let colon = if port.is_empty() { "" } else { ":" };
        let protocol = self.protocol.as_str().to_lowercase();
        let hash = digest(
            &SHA256,
            format!("{service}{colon}{port}{protocol}").as_bytes(),
        );
        format!("{prefix}-{}", &BASE32.encode(hash.as_ref())[..16])
    }

    /// The map in which kube-proxy has it in nftables mode, if the Service has endpoints
    /// (Kubernetes pkg/proxy/nftables/proxier.go).
    fn map(&self) -> &'static str {
        match self.kind {
            EntranceKind::ClusterIp => "service-ips",
            EntranceKind::NodePort => "service-nodeports",
        }
    }

    /// Its key there: `ip daddr . meta l4proto . th dport`, of a NodePort without the
    /// address.
    fn map_key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        if self.kind == EntranceKind::ClusterIp {
            key.extend(address(self.socket.ip()));
        }
        key.extend(protocol_and_port(self.protocol, self.socket.port()));
        key
    }

    /// How its line begins in `/proc/net/ip_vs` (kernel net/netfilter/ipvs/ip_vs_ctl.c).
    fn virtual_server(&self) -> String {
        let (protocol, port) = (self.protocol.as_str(), self.socket.port());
        match self.socket.ip() {
            IpAddr::V4(ip) => format!("{protocol}  {:08X}:{port:04X} ", ip.to_bits()),
            IpAddr::V6(ip) => {
                let groups = ip.segments().map(|group| format!("{group:04x}")).join(":");
                format!("{protocol}  [{groups}]:{port:04X} ")
            }
        }
    }
}

/// Those of the entrances that a kube-proxy of this mode has not programmed: also those of
/// Services without endpoints, and all if it uses iptables-legacy, which nftables cannot
/// see into. Blocks.
#[must_use]
pub fn missing(mode: Option<ProxyMode>, entrances: BTreeSet<Entrance>) -> BTreeSet<Entrance> {
    let Ok(socket) = Socket::new(NETLINK_NETFILTER) else {
        return entrances;
    };
    let mut missing = entrances;
    match mode {
        Some(ProxyMode::Nftables) => missing.retain(|entrance| !in_map(&socket, entrance)),
        Some(ProxyMode::Iptables) => missing.retain(|entrance| !has_chain(&socket, entrance)),
        Some(ProxyMode::Ipvs) => {
            let servers = fs::read_to_string("/proc/net/ip_vs").unwrap_or_default();
            missing.retain(|entrance| {
                let server = entrance.virtual_server();
                !servers.lines().any(|line| line.starts_with(&server))
            });
        }
        Some(ProxyMode::Absent | ProxyMode::Other) | None => missing.clear(),
    }
    missing
}

/// nft get element ip kube-proxy service-ips { 10.96.0.10 . tcp . 80 }
fn in_map(socket: &Socket, entrance: &Entrance) -> bool {
    let key = DataAttribute::Value(entrance.map_key());
    let element = ListAttribute::Element(vec![SetElementAttribute::Key(key)]);
    let attributes = vec![
        SetElementList::Table("kube-proxy".to_owned()),
        SetElementList::Set(entrance.map().to_owned()),
        SetElementList::Elements(vec![element]),
    ];
    let question = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
    exists(socket, netfilter_family(entrance), question)
}

/// nft list chain ip nat KUBE-SVC-NPX46M4PTMTKRN6Y
fn has_chain(socket: &Socket, entrance: &Entrance) -> bool {
    let attributes = vec![
        ChainAttribute::Table("nat".to_owned()),
        ChainAttribute::Name(entrance.chain()),
    ];
    let question = NfTablesMessage::GetChain(ChainMessage { attributes });
    exists(socket, netfilter_family(entrance), question)
}

fn netfilter_family(entrance: &Entrance) -> NetfilterProtoFamily {
    match entrance.family() {
        Family::V4 => IPv4,
        Family::V6 => IPv6,
    }
}

/// Whether nftables has an object: one question to the kernel about it alone. nft would
/// load all tables for it. If the kernel cannot be asked there is none.
pub(super) fn exists(
    socket: &Socket,
    family: NetfilterProtoFamily,
    question: NfTablesMessage,
) -> bool {
    let question = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), question);
    ask(socket, NLM_F_ACK, question, |_| {}).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrance(kind: EntranceKind, port: &str, socket: &str) -> Entrance {
        Entrance {
            port_name: ServicePortName {
                service: "default/kubernetes".parse().unwrap(),
                port: port.into(),
            },
            protocol: Protocol::Tcp,
            kind,
            socket: socket.parse().unwrap(),
        }
    }

    #[test]
    fn chains_have_the_names_that_kube_proxy_gives_them() {
        // The Service of the API server, in every cluster.
        let api = entrance(EntranceKind::ClusterIp, "https", "10.96.0.1:443");
        assert_eq!(api.chain(), "KUBE-SVC-NPX46M4PTMTKRN6Y");
    }

    #[test]
    fn virtual_servers_stand_as_the_kernel_writes_them() {
        let v4 = entrance(EntranceKind::ClusterIp, "", "10.96.0.1:80");
        assert_eq!(v4.virtual_server(), "TCP  0A600001:0050 ");
        let v6 = entrance(EntranceKind::ClusterIp, "", "[fd00::1]:443");
        let groups = "[fd00:0000:0000:0000:0000:0000:0000:0001]";
        assert_eq!(v6.virtual_server(), format!("TCP  {groups}:01BB "));
    }
}
