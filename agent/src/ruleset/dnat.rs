//! The chains beside a kube-proxy in ipvs mode.
//!
//! ipvs takes packets at local-in and local-out, after all nat chains, and has
//! conntrack lead the connection to the Pod it has chosen. So a nat rule of ours to
//! the ClusterIP, which `kube-ipvs0` makes local, composes with it.
//!
//! The kernel runs all nat chains of a hook at one place, -100 for destinations:
//! their priorities only order them among each other. What has to come before
//! them must stand in a chain of type filter.

use highwire_api::Family;

use super::{
    chains::{
        AFTER_MASQUERADE, Chain, ChainType, HAS_LISTENER, Hook, REWRITE_COUNTER, base, guard,
        guarded, inbound, ip, output, postrouting, prerouting, to_served,
    },
    elements::Container,
};

/// Before our nat, after conntrack (-200) and mangle (-150).
const BEFORE_OUR_NAT: i32 = -115;
/// Before the nat chains of others (-100): the first that maps a connection wins.
const OUR_NAT: i32 = -110;

/// All chains, those that are jumped to before those that jump.
pub(super) fn chains() -> Vec<Chain> {
    vec![
        guard(),
        admit(),
        inbound("admit"),
        base(
            "prerouting",
            ChainType::Filter,
            Hook::Prerouting,
            BEFORE_OUR_NAT,
            prerouting(),
        ),
        base(
            "output",
            ChainType::Filter,
            Hook::Output,
            BEFORE_OUR_NAT,
            output("admit"),
        ),
        to_service(),
        nat_inbound(),
        base(
            "nat_prerouting",
            ChainType::Nat,
            Hook::Prerouting,
            OUR_NAT,
            Family::ALL
                .map(|family| to_served(family, "nat_inbound"))
                .into(),
        ),
        // No listener rule here either: the socket would be the client's own.
        base(
            "nat_output",
            ChainType::Nat,
            Hook::Output,
            OUR_NAT,
            Family::ALL
                .map(|family| to_served(family, "to_service"))
                .into(),
        ),
        base(
            "postrouting",
            ChainType::Nat,
            Hook::Postrouting,
            AFTER_MASQUERADE,
            // Ours has kept kube-proxy's nat rules from marking the connection, so
            // nobody else masquerades it, whichever way it went.
            Family::ALL
                .map(|family| postrouting(family, Container::LocalPolicy(family)))
                .into(),
        ),
    ]
}

/// Who may pass, decided before our nat: whoever is refused is never mapped.
fn admit() -> Chain {
    Chain {
        name: "admit",
        base: None,
        rules: Family::ALL.map(guarded).into(),
    }
}

/// Packets that open a connection from outside or from a Pod, once admitted.
fn nat_inbound() -> Chain {
    Chain {
        name: "nat_inbound",
        base: None,
        rules: vec![
            // As in `inbound`, which has counted it and can tell us nothing without a mark.
            format!("{HAS_LISTENER} accept"),
            "goto to_service".to_owned(),
        ],
    }
}

/// The ClusterIP and the NodePort at the primary address are virtual servers of
/// ipvs. A lookup that misses ends the rule without effect.
fn to_service() -> Chain {
    let to_cluster_ip = |family| {
        let (ip, map) = (ip(family), Container::ClusterIp(family).name());
        format!("dnat {ip} to meta l4proto . th dport map @{map}")
    };
    let to_node_port = |family| {
        let address = Container::NodeAddress(family).name();
        let port = Container::NodePort(family).name();
        format!(
            "dnat {} to meta l4proto . th dport map @{address} : meta l4proto . th dport map @{port}",
            ip(family)
        )
    };
    let mut rules = vec![format!("counter name {REWRITE_COUNTER}")];
    rules.extend(Family::ALL.map(to_cluster_ip));
    rules.extend(Family::ALL.map(to_node_port));
    Chain {
        name: "to_service",
        base: None,
        rules,
    }
}
