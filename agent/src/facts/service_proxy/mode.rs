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

use super::{entrances::exists, others::Other};

/// What there is on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The mode that kube-proxy says it is in, or that its traces speak of; `None` if there is
    /// no sign of it.
    pub mode: Option<ProxyMode>,
    /// Another program that may do its work, if there is no sign of it.
    pub other: Option<Other>,
}

/// Searches for kube-proxy. `known` is the mode that this found last.
pub async fn detect(said: Option<&str>, known: Option<ProxyMode>) -> Found {
    if let Some(mode) = said.and_then(parse) {
        return Found {
            mode: Some(mode),
            other: None,
        };
    }
    let traces = spawn_blocking(|| (Traces::find(), Other::find())).await;
    let (traces, other) = traces.unwrap_or_default();
    traces.read(known, other)
}

/// What kube-proxy leaves in the kernel. Each of them is looked for without listing
/// anything of anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traces {
    /// The table of the nftables mode.
    nftables: bool,
    /// The empty chain by which it notices a flush.
    iptables: bool,
    /// iptables-legacy is used for NAT, which nftables cannot see into.
    legacy_nat: bool,
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
            iptables: exists(canary_chain),
            legacy_nat: legacy_nat(),
            // Not by /sys, which shows the interfaces of whoever mounted it.
            ipvs_interface: if_nametoindex("kube-ipvs0").is_ok(),
            virtual_servers: virtual_servers(),
        }
    }

    /// What they speak of. kube-proxy removes its nftables when it starts in another
    /// mode, but iptables and ipvs leave each other's traces.
    fn read(self, known: Option<ProxyMode>, other: Option<Other>) -> Found {
        let left = |mode| match mode {
            ProxyMode::Nftables => self.nftables,
            ProxyMode::Iptables => self.iptables || self.legacy_nat,
            ProxyMode::Ipvs => self.ipvs_interface,
            ProxyMode::Absent | ProxyMode::Other => false,
        };
        let mode = if known.is_some_and(left) {
            known
        } else if self.nftables {
            Some(ProxyMode::Nftables)
        } else if self.iptables {
            Some(ProxyMode::Iptables)
        } else if self.ipvs_interface && self.virtual_servers {
            Some(ProxyMode::Ipvs)
        } else if self.legacy_nat && other.is_none() {
            // The others use it too, for their own ends.
            Some(ProxyMode::Iptables)
        } else {
            None
        };
        Found {
            mode,
            other: other.filter(|_| mode.is_none()),
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
pub(super) fn virtual_servers() -> bool {
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
        assert_eq!(
            both.read(Some(ProxyMode::Ipvs), None).mode,
            Some(ProxyMode::Ipvs)
        );
        assert_eq!(
            both.read(Some(ProxyMode::Iptables), None).mode,
            Some(ProxyMode::Iptables)
        );
        for known in [None, Some(ProxyMode::Nftables)] {
            assert_eq!(
                both.read(known, None).mode,
                Some(ProxyMode::Iptables),
                "{known:?}"
            );
        }
        assert_eq!(
            Traces::default().read(Some(ProxyMode::Ipvs), None).mode,
            None
        );
    }

    #[test]
    fn an_interface_that_ipvs_has_left_decides_nothing() {
        let left = Traces {
            ipvs_interface: true,
            ..Traces::default()
        };
        assert_eq!(left.read(None, None).mode, None);
        let alive = Traces {
            virtual_servers: true,
            ..left
        };
        assert_eq!(alive.read(None, None).mode, Some(ProxyMode::Ipvs));
        let nftables = Traces {
            nftables: true,
            ..alive
        };
        assert_eq!(nftables.read(None, None).mode, Some(ProxyMode::Nftables));
    }

    #[test]
    fn what_other_programs_use_too_is_no_sign_beside_one() {
        let legacy = Traces {
            legacy_nat: true,
            ..Traces::default()
        };
        let (cilium, iptables) = (Some(Other::Cilium), Some(ProxyMode::Iptables));
        assert_eq!(legacy.read(None, None).mode, iptables);
        let beside = Found {
            mode: None,
            other: cilium,
        };
        assert_eq!(legacy.read(None, cilium), beside);
        let known = legacy.read(iptables, cilium);
        assert_eq!((known.mode, known.other), (iptables, None), "it was there");
        let canary = Traces {
            iptables: true,
            ..legacy
        };
        let found = canary.read(Some(ProxyMode::Absent), cilium);
        assert_eq!((found.mode, found.other), (iptables, None), "it has come");
    }

    #[test]
    fn modes_have_the_names_of_the_flag() {
        assert_eq!(parse("nftables"), Some(ProxyMode::Nftables));
        assert_eq!(parse("userspace"), None);
    }
}
