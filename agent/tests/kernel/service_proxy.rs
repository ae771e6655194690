//! What kube-proxy leaves in the kernel, made by hand.

use std::collections::BTreeSet;

use highwire_agent::facts::{
    endpoints::ServicePortName,
    service_proxy::{
        Other,
        entrances::{Entrance, EntranceKind, missing},
        mode,
    },
};
use highwire_api::{Protocol, node::ProxyMode};

use super::{command, in_new_namespace};

#[test]
fn kube_proxy_is_known_by_its_traces() {
    for (traces, mode) in [
        (&[][..], None),
        (&["nft add table ip kube-proxy"], Some(ProxyMode::Nftables)),
        (
            &[
                "nft add table ip mangle",
                "nft add chain ip mangle KUBE-PROXY-CANARY",
            ],
            Some(ProxyMode::Iptables),
        ),
        (&["nft add table ip6 kube-proxy"], Some(ProxyMode::Nftables)),
        // A kube-proxy that was in ipvs mode once leaves it. There is no ipvs in this
        // kernel that could have a virtual server.
        (&["ip link add kube-ipvs0 type veth peer name other"], None),
    ] {
        in_new_namespace(async move || {
            for trace in traces {
                command(trace);
            }
            assert_eq!(mode::detect(None, None).await.mode, mode, "{traces:?}");
            // A missed answer changes nothing.
            if !traces.is_empty() {
                let known = traces[0].contains("kube-ipvs0").then_some(ProxyMode::Ipvs);
                let known = known.or(mode);
                assert_eq!(mode::detect(None, known).await.mode, known, "{traces:?}");
            }
        });
    }
}

#[test]
fn what_does_its_work_is_known_by_its_interface() {
    in_new_namespace(async || {
        let found = |mode| async move { mode::detect(None, mode).await };
        command("ip link add kube-dummy-if type veth peer name other");
        assert_eq!(found(None).await.other, None, "without a virtual server");
        command("ip link add cilium_host type veth peer name cilium_net");
        let found = found(None).await;
        assert_eq!((found.mode, found.other), (None, Some(Other::Cilium)));
        command("nft add table ip kube-proxy");
        let beside = mode::detect(None, None).await;
        let nftables = Some(ProxyMode::Nftables);
        assert_eq!((beside.mode, beside.other), (nftables, None));
    });
}

fn entrance(protocol: Protocol, kind: EntranceKind, socket: &str) -> Entrance {
    Entrance {
        port_name: ServicePortName {
            service: "default/kubernetes".parse().unwrap(),
            port: "https".into(),
        },
        protocol,
        kind,
        socket: socket.parse().unwrap(),
    }
}

#[test]
fn kube_proxys_nftables_are_asked_for_single_services() {
    in_new_namespace(async || {
        for line in [
            "nft add table ip kube-proxy",
            "nft add chain ip kube-proxy service-X",
            "nft add map ip kube-proxy service-ips \
             {typeof ip daddr . meta l4proto . th dport : verdict;}",
            "nft add map ip kube-proxy service-nodeports \
             {typeof meta l4proto . th dport : verdict;}",
            "nft add element ip kube-proxy service-ips \
             {10.96.0.1 . tcp . 443 : goto service-X}",
            "nft add element ip kube-proxy service-ips \
             {10.96.0.2 . udp . 53 : goto service-X}",
            "nft add element ip kube-proxy service-nodeports {tcp . 30080 : goto service-X}",
            "nft add table ip6 kube-proxy",
            "nft add map ip6 kube-proxy service-ips \
             {typeof ip6 daddr . meta l4proto . th dport : verdict;}",
            "nft add element ip6 kube-proxy service-ips {fd00::1 . sctp . 7 : drop}",
        ] {
            command(line);
        }
        use EntranceKind::{ClusterIp, NodePort};
        use Protocol::{Sctp, Tcp, Udp};
        let there = [
            entrance(Tcp, ClusterIp, "10.96.0.1:443"),
            entrance(Udp, ClusterIp, "10.96.0.2:53"),
            entrance(Tcp, NodePort, "192.0.2.11:30080"),
            entrance(Sctp, ClusterIp, "[fd00::1]:7"),
        ];
        let not_there = [
            entrance(Udp, ClusterIp, "10.96.0.1:443"),
            entrance(Tcp, ClusterIp, "10.96.0.1:444"),
            entrance(Tcp, ClusterIp, "10.96.0.3:443"),
            entrance(Tcp, NodePort, "[2001:db8:1::11]:30080"),
            entrance(Tcp, ClusterIp, "[fd00::1]:7"),
        ];
        let all = there.iter().chain(&not_there).cloned().collect();
        let missing = missing(Some(ProxyMode::Nftables), all);
        assert_eq!(missing, not_there.into_iter().collect::<BTreeSet<_>>());
    });
}

#[test]
fn kube_proxys_iptables_are_asked_for_single_services() {
    in_new_namespace(async || {
        for line in [
            "iptables-nft -w -t nat -N KUBE-SVC-NPX46M4PTMTKRN6Y",
            "ip6tables-nft -w -t nat -N KUBE-EXT-NPX46M4PTMTKRN6Y",
        ] {
            command(line);
        }
        use EntranceKind::{ClusterIp, NodePort};
        let four = entrance(Protocol::Tcp, ClusterIp, "10.96.0.1:443");
        let six = entrance(Protocol::Tcp, NodePort, "[2001:db8:1::11]:30080");
        let there = [four.clone(), six.clone()];
        let mut other = four.clone();
        other.port_name.port = "http".into();
        let not_there = [
            Entrance {
                kind: NodePort,
                ..four.clone()
            },
            Entrance {
                socket: "[fd00::1]:443".parse().unwrap(),
                ..four
            },
            other,
        ];
        let all = there.iter().chain(&not_there).cloned().collect();
        let missing = missing(Some(ProxyMode::Iptables), all);
        assert_eq!(missing, not_there.into_iter().collect::<BTreeSet<_>>());
    });
}
