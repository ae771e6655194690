//! The chains and rules, which depend on the [`DataPath`] alone. Those of
//! [`DataPath::FirstPacket`] and those that both have are here. A rule is the
//! sentence that nft reads.

use std::fmt;

use highwire_api::Family;

use super::{DataPath, dnat, elements::Container};

/// Before kube-proxy's nat (-100), after conntrack (-200) and mangle (-150).
const BEFORE_NAT: i32 = -105;
/// After kube-proxy's nat.
const AFTER_NAT: i32 = -95;
/// After kube-proxy's masquerade (100): what it has masqueraded is left alone.
pub(super) const AFTER_MASQUERADE: i32 = 105;

/// Counts new connections that were left to a listener on the host.
pub const LISTENER_COUNTER: &str = "listener";
/// Counts new connections that were rewritten towards a Service.
pub const REWRITE_COUNTER: &str = "rewrite";
/// Counts new connections that nobody took after the rewrite, so that they were
/// given back to the node's own stack, which refuses them.
pub const GIVEBACK_COUNTER: &str = "giveback";

/// Counts packets of clients that a Service does not let in.
pub const DENIED_COUNTER: &str = "denied";

/// The counters of the table.
pub const COUNTERS: [&str; 4] = [
    LISTENER_COUNTER,
    REWRITE_COUNTER,
    GIVEBACK_COUNTER,
    DENIED_COUNTER,
];

/// A socket on this host waits for the packet, whatever its address.
pub(super) const HAS_LISTENER: &str = "socket wildcard { 0, 1 }";
/// The protocols that Services have ports of.
const HAS_PORTS: &str = "meta l4proto { tcp, udp, sctp }";

/// A chain of the table.
#[derive(Debug)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where the kernel enters it; `None` for one that is jumped to.
    pub base: Option<Base>,
    /// Its rules in nft's language, in order.
    pub rules: Vec<String>,
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The chain type.
    pub kind: ChainType,
    /// The netfilter hook.
    pub hook: Hook,
    /// The priority at the hook.
    pub priority: i32,
}

/// As nft declares it, its policy included.
impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChainType::Filter => "filter",
            ChainType::Route => "route",
            ChainType::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        let priority = self.priority;
        write!(
            f,
            "type {kind} hook {hook} priority {priority}; policy accept;"
        )
    }
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainType {
    /// Anything but what the others are for.
    Filter,
    /// At output: packets whose header it changes are routed again.
    Route,
    /// Decides the mapping of a new connection.
    Nat,
}

/// Where in the kernel packets enter a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// As they come in, from outside or a Pod.
    Prerouting,
    /// As the node itself sends them.
    Output,
    /// As they leave.
    Postrouting,
}

/// `ip` or `ip6`.
pub(super) fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// All chains, those that are jumped to before those that jump.
#[must_use]
pub fn chains(path: DataPath) -> Vec<Chain> {
    match path {
        DataPath::FirstPacket => first_packet(),
        DataPath::Dnat => dnat::chains(),
    }
}

fn first_packet() -> Vec<Chain> {
    vec![
        guard(),
        node_port(Family::V4),
        node_port(Family::V6),
        rewrite(),
        inbound("rewrite"),
        restore_port(),
        restore(),
        base(
            "prerouting",
            ChainType::Filter,
            Hook::Prerouting,
            BEFORE_NAT,
            prerouting(),
        ),
        base(
            "output",
            ChainType::Route,
            Hook::Output,
            BEFORE_NAT,
            output("rewrite"),
        ),
        base(
            "giveback",
            ChainType::Filter,
            Hook::Prerouting,
            AFTER_NAT,
            vec![giveback()],
        ),
        base(
            "giveback_output",
            ChainType::Route,
            Hook::Output,
            AFTER_NAT,
            vec![giveback()],
        ),
        base(
            "postrouting",
            ChainType::Nat,
            Hook::Postrouting,
            AFTER_MASQUERADE,
            // Connections that went the NodePort way are masqueraded by kube-proxy, as
            // the traffic policy says.
            Family::ALL
                .map(|family| postrouting(family, Container::ViaPort(family)))
                .into(),
        ),
    ]
}

pub(super) fn base(
    name: &'static str,
    kind: ChainType,
    hook: Hook,
    priority: i32,
    rules: Vec<String>,
) -> Chain {
    Chain {
        name,
        base: Some(Base {
            kind,
            hook,
            priority,
        }),
        rules,
    }
}

/// Packets for a served address and port go to that chain.
pub(super) fn to_served(family: Family, chain: &'static str) -> String {
    format!(
        "{} daddr @{} meta l4proto . th dport @{} jump {chain}",
        ip(family),
        Container::Node(family).name(),
        Container::Ports(family).name()
    )
}

/// Packets from outside and from Pods.
pub(super) fn prerouting() -> Vec<String> {
    let mut rules = vec!["ct state established,related accept".to_owned()];
    rules.extend(Family::ALL.map(|family| to_served(family, "inbound")));
    rules
}

/// Packets for a served port; those that open a connection go on to `next`.
pub(super) fn inbound(next: &'static str) -> Chain {
    let rules = vec![
        // Whoever may bind a host port is trusted more than whoever may create a Service.
        format!("{HAS_LISTENER} counter name {LISTENER_COUNTER} accept"),
        // Else the node's own stack would reset the client's connection.
        "ct state invalid drop".to_owned(),
        format!("ct state new jump {next}"),
    ];
    Chain {
        name: "inbound",
        base: None,
        rules,
    }
}

/// Packets of clients on the node itself. No listener rule here: the socket
/// would be the client's own.
pub(super) fn output(next: &'static str) -> Vec<String> {
    Family::ALL
        .map(|family| format!("ct state new {}", to_served(family, next)))
        .into()
}

/// The first packet gets the ClusterIP into its header; kube-proxy's nat rules
/// then make the one conntrack entry, from the node's address to a Pod. A lookup
/// that misses ends the rule without effect.
fn rewrite() -> Chain {
    let to_cluster_ip = |family| {
        let (ip, map) = (ip(family), Container::ClusterIp(family).name());
        format!("{ip} daddr set meta l4proto . th dport map @{map} accept")
    };
    let to_node_port = |family| {
        let (ip, map) = (ip(family), Container::NodeAddress(family).name());
        let chain = node_port(family).name;
        format!("{ip} daddr set meta l4proto . th dport map @{map} goto {chain}")
    };
    let mut rules: Vec<String> = Family::ALL.map(guarded).into();
    rules.push(format!("counter name {REWRITE_COUNTER}"));
    rules.extend(Family::ALL.map(to_cluster_ip));
    rules.extend(Family::ALL.map(to_node_port));
    Chain {
        name: "rewrite",
        base: None,
        rules,
    }
}

/// Connections to a port that not every client may use.
pub(super) fn guarded(family: Family) -> String {
    let guarded = Container::Guarded(family).name();
    let nfproto = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("meta nfproto {nfproto} meta l4proto . th dport @{guarded} jump guard")
}

/// `loadBalancerSourceRanges`, before anything is rewritten. kube-proxy cannot do
/// it: it sees a ClusterIP or a NodePort, for which they do not count.
pub(super) fn guard() -> Chain {
    let allowed = |family| {
        let (ip, allowed) = (ip(family), Container::Allowed(family).name());
        format!("meta l4proto . th dport . {ip} saddr @{allowed} return")
    };
    let mut rules: Vec<String> = Family::ALL.map(allowed).into();
    rules.push(format!("counter name {DENIED_COUNTER} drop"));
    Chain {
        name: "guard",
        base: None,
        rules,
    }
}

/// New connections that nobody has claimed: without this a client of a Service
/// without endpoints would wait for its timeout.
fn giveback() -> String {
    format!("ct state new ct status & dnat == 0 {HAS_PORTS} jump restore")
}

fn restore() -> Chain {
    let address = |family| {
        let (node, ports) = (Container::Node(family), Container::Ports(family));
        let (ip, node, ports) = (ip(family), node.name(), ports.name());
        // If it does not lead elsewhere, it was never rewritten, because a listener has
        // it. Without its protocol nft cannot tell the width of `ct original proto-dst`.
        format!(
            "{ip} daddr != @{node} {HAS_PORTS} ct original {ip} daddr @{node} \
             meta l4proto . ct original proto-dst @{ports} counter name {GIVEBACK_COUNTER} \
             {ip} daddr set ct original {ip} daddr accept"
        )
    };
    let address_and_port = |family| {
        let (node, viaport) = (Container::Node(family), Container::ViaPort(family));
        let (ip, node, viaport) = (ip(family), node.name(), viaport.name());
        // As above: one that a listener has still has the port the client asked for.
        format!(
            "{HAS_PORTS} meta l4proto . th dport != @{viaport} \
             ct original {ip} daddr @{node} meta l4proto . ct original proto-dst @{viaport} \
             counter name {GIVEBACK_COUNTER} {ip} daddr set ct original {ip} daddr \
             jump restore_port"
        )
    };
    let mut rules: Vec<String> = Family::ALL.map(address).into();
    rules.extend(Family::ALL.map(address_and_port));
    Chain {
        name: "restore",
        base: None,
        rules,
    }
}

fn restore_port() -> Chain {
    Chain {
        name: "restore_port",
        base: None,
        rules: set_port("ct original proto-dst"),
    }
}

/// To the NodePort, at the address where kube-proxy serves it.
fn node_port(family: Family) -> Chain {
    let name = match family {
        Family::V4 => "to_nodeport4",
        Family::V6 => "to_nodeport6",
    };
    let map = Container::NodePort(family).name();
    Chain {
        name,
        base: None,
        rules: set_port(&format!("meta l4proto . th dport map @{map}")),
    }
}

/// Sets the destination port. `th dport set` alone would leave the checksum
/// wrong; that of a UDP packet sent without one must stay zero (RFC 768), which
/// `udp dport set` would not do.
fn set_port(value: &str) -> Vec<String> {
    ["tcp", "udp checksum 0 th", "udp", "sctp"]
        .map(|header| format!("{header} dport set {value} accept"))
        .into()
}

/// kube-proxy does not masquerade Pods, nor anyone when it has no cluster CIDR;
/// without this a Pod's reply to a Pod on its own node would go past this node.
/// Ports in `exempt` are none of our business.
pub(super) fn postrouting(family: Family, exempt: Container) -> String {
    let (node, ports) = (Container::Node(family), Container::Ports(family));
    format!(
        "{HAS_PORTS} ct status dnat ct original {} daddr @{} \
         meta l4proto . ct original proto-dst @{} \
         meta l4proto . ct original proto-dst != @{} masquerade fully-random",
        ip(family),
        node.name(),
        ports.name(),
        exempt.name()
    )
}
