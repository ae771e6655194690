//! How kube-proxy works on this node.
//!
//! It is asked itself first. If it does not answer, its traces in the kernel tell: they
//! outlive a restart of it, and so does the forwarding. But they may also be left from a
//! mode it was in before, so a mode that is known stays as long as its own traces do.

use std::fs;

use highwire_api::node::ProxyMode;
use netlink_packet_netfilter::{
    NetfilterProtoFamily::{IPv4, IPv6},
    nftables::{ChainAttribute, ChainMessage, NfTablesMessage, TableAttribute, TableMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::net::if_::if_nametoindex;
use tokio::task::spawn_blocking;

use super::entrances::exists;

/// The mode that it says it is in, or that its traces speak of; `None` if there is no
/// sign of it. `known` is what this said last.
pub async fn detect(said: Option<&str>, known: Option<ProxyMode>) -> Option<ProxyMode> {
    if let Some(mode) = said.and_then(parse) {
        return Some(mode);
    }
    let traces = spawn_blocking(Traces::find).await;
    traces.unwrap_or_default().mode(known)
}

/// What kube-proxy leaves in the kernel. Each of them is looked for without listing
/// anything of anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traces {
    /// The table of the nftables mode.
    nftables: bool,
    /// The empty chain by which it notices a flush, or iptables-legacy used for NAT,
    /// which nftables cannot see into.
    iptables: bool,
    /// The interface that has the ClusterIPs in ipvs mode.
    ipvs_interface: bool,
    /// Virtual servers of ipvs.
    virtual_servers: bool,
}

impl Traces {
    fn find() -> Self {
        let socket = Socket::new(NETLINK_NETFILTER);
        let exists = |question: fn() -> NfTablesMessage| {
            let families = [IPv4, IPv6];
            let asked = |socket, family| exists(socket, family, question());
            let found = |socket| families.into_iter().any(|family| asked(socket, family));
            socket.as_ref().is_ok_and(found)
        };
        Self {
            nftables: exists(kube_proxy_table),
            iptables: exists(canary_chain) || legacy_nat(),
            // Not by /sys, which shows the interfaces of whoever mounted it.
            ipvs_interface: if_nametoindex("kube-ipvs0").is_ok(),
            virtual_servers: virtual_servers(),
        }
    }

    /// The mode they speak of. kube-proxy removes its nftables when it starts in another
    /// mode, but iptables and ipvs leave each other's traces.
    fn mode(self, known: Option<ProxyMode>) -> Option<ProxyMode> {
        let left = |mode| match mode {
            ProxyMode::Nftables => self.nftables,
            ProxyMode::Iptables => self.iptables,
            ProxyMode::Ipvs => self.ipvs_interface,
            ProxyMode::Other => false,
        };
        if known.is_some_and(left) {
            return known;
        }
        if self.nftables {
            Some(ProxyMode::Nftables)
        } else if self.iptables {
            Some(ProxyMode::Iptables)
        } else if self.ipvs_interface && self.virtual_servers {
            Some(ProxyMode::Ipvs)
        } else {
            None
        }
    }
}

fn kube_proxy_table() -> NfTablesMessage {
    let attributes = vec![TableAttribute::Name("kube-proxy".to_owned())];
    NfTablesMessage::GetTable(TableMessage { attributes })
}

fn canary_chain() -> NfTablesMessage {
    let table = ChainAttribute::Table("mangle".to_owned());
    let name = ChainAttribute::Name("KUBE-PROXY-CANARY".to_owned());
    let attributes = vec![table, name];
    NfTablesMessage::GetChain(ChainMessage { attributes })
}

/// Whether ipvs has any in this network namespace (net/netfilter/ipvs/ip_vs_ctl.c: each
/// stands in a line of its own that begins with its protocol).
fn virtual_servers() -> bool {
    fs::read_to_string("/proc/net/ip_vs").is_ok_and(|text| {
        text.lines().any(|line| {
            ["TCP ", "UDP ", "SCTP "]
                .iter()
                .any(|p| line.starts_with(p))
        })
    })
}

fn legacy_nat() -> bool {
    ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .iter()
        .any(|path| {
            fs::read_to_string(path).is_ok_and(|tables| tables.lines().any(|table| table == "nat"))
        })
}

fn parse(mode: &str) -> Option<ProxyMode> {
    match mode {
        "iptables" => Some(ProxyMode::Iptables),
        "nftables" => Some(ProxyMode::Nftables),
        "ipvs" => Some(ProxyMode::Ipvs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_mode_stays_as_long_as_its_traces_do() {
        let both = Traces {
            iptables: true,
            ipvs_interface: true,
            virtual_servers: true,
            ..Traces::default()
        };
        assert_eq!(both.mode(Some(ProxyMode::Ipvs)), Some(ProxyMode::Ipvs));
        assert_eq!(
            both.mode(Some(ProxyMode::Iptables)),
            Some(ProxyMode::Iptables)
        );
        for known in [None, Some(ProxyMode::Nftables)] {
            assert_eq!(both.mode(known), Some(ProxyMode::Iptables), "{known:?}");
        }
        assert_eq!(Traces::default().mode(Some(ProxyMode::Ipvs)), None);
    }

    #[test]
    fn an_interface_that_ipvs_has_left_decides_nothing() {
        let left = Traces {
            ipvs_interface: true,
            ..Traces::default()
        };
        assert_eq!(left.mode(None), None);
        let alive = Traces {
            virtual_servers: true,
            ..left
        };
        assert_eq!(alive.mode(None), Some(ProxyMode::Ipvs));
        let nftables = Traces {
            nftables: true,
            ..alive
        };
        assert_eq!(nftables.mode(None), Some(ProxyMode::Nftables));
    }

    #[test]
    fn modes_have_the_names_of_the_flag() {
        assert_eq!(parse("nftables"), Some(ProxyMode::Nftables));
        assert_eq!(parse("userspace"), None);
    }
}
