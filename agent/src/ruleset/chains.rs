//! The chains and rules, which depend on the [`DataPath`] alone. Those of
//! [`DataPath::FirstPacket`] and those that both have are here.
//!
//! Each rule is written twice, as the nft sentence a person reads and as the
//! expression the kernel gets; the kernel tests prove that the two are one.

use highwire_api::Family;
use nftables::{
    expr::Expression,
    stmt::Statement,
    types::{NfChainType, NfHook},
};

use super::{
    DataPath, dnat,
    elements::Container,
    expression::{
        accept, back, count, ct_state, daddr, dport, drop, goto, has_listener, has_no_udp_checksum,
        has_ports, is_dnatted, is_family, is_in, is_not_dnatted, is_not_in, jump, l4proto_dport,
        l4proto_dport_saddr, l4proto_original_dport, map, masquerade, original_daddr,
        original_dport, set,
    },
};

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

/// A chain of the table.
#[derive(Debug)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where the kernel enters it; `None` for one that is jumped to.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The chain type.
    pub kind: NfChainType,
    /// The netfilter hook.
    pub hook: NfHook,
    /// The priority at the hook.
    pub priority: i32,
}

/// A rule of a chain.
#[derive(Debug)]
pub struct Rule {
    /// The rule in nft's language.
    pub sentence: String,
    /// The same for the kernel.
    pub statements: Vec<Statement<'static>>,
}

/// `ip` or `ip6`.
pub(super) fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

pub(super) fn rule(sentence: impl Into<String>, statements: Vec<Statement<'static>>) -> Rule {
    Rule {
        sentence: sentence.into(),
        statements,
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
            NfChainType::Filter,
            NfHook::Prerouting,
            BEFORE_NAT,
            prerouting(),
        ),
        base(
            "output",
            NfChainType::Route,
            NfHook::Output,
            BEFORE_NAT,
            output("rewrite"),
        ),
        base(
            "giveback",
            NfChainType::Filter,
            NfHook::Prerouting,
            AFTER_NAT,
            vec![giveback()],
        ),
        base(
            "giveback_output",
            NfChainType::Route,
            NfHook::Output,
            AFTER_NAT,
            vec![giveback()],
        ),
        base(
            "postrouting",
            NfChainType::NAT,
            NfHook::Postrouting,
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
    kind: NfChainType,
    hook: NfHook,
    priority: i32,
    rules: Vec<Rule>,
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
pub(super) fn to_served(family: Family, chain: &'static str) -> Rule {
    let (node, ports) = (Container::Node(family), Container::Ports(family));
    rule(
        format!(
            "{} daddr @{} meta l4proto . th dport @{} jump {chain}",
            ip(family),
            node.name(),
            ports.name()
        ),
        vec![
            is_in(daddr(family), node),
            is_in(l4proto_dport(), ports),
            jump(chain),
        ],
    )
}

/// Packets from outside and from Pods.
pub(super) fn prerouting() -> Vec<Rule> {
    let mut rules = vec![rule(
        "ct state established,related accept",
        vec![ct_state(&["established", "related"]), accept()],
    )];
    rules.extend(Family::ALL.map(|family| to_served(family, "inbound")));
    rules
}

/// Packets for a served port; those that open a connection go on to `next`.
pub(super) fn inbound(next: &'static str) -> Chain {
    let rules = vec![
        // Whoever may bind a host port is trusted more than whoever may create a Service.
        rule(
            "socket wildcard { 0, 1 } counter name listener accept",
            vec![has_listener(), count(LISTENER_COUNTER), accept()],
        ),
        // Else the node's own stack would reset the client's connection.
        rule(
            "ct state invalid drop",
            vec![ct_state(&["invalid"]), drop()],
        ),
        rule(
            format!("ct state new jump {next}"),
            vec![ct_state(&["new"]), jump(next)],
        ),
    ];
    Chain {
        name: "inbound",
        base: None,
        rules,
    }
}

/// Packets of clients on the node itself. No listener rule here: the socket
/// would be the client's own.
pub(super) fn output(next: &'static str) -> Vec<Rule> {
    let opening = |family| {
        let Rule {
            sentence,
            mut statements,
        } = to_served(family, next);
        statements.insert(0, ct_state(&["new"]));
        rule(format!("ct state new {sentence}"), statements)
    };
    Family::ALL.map(opening).into()
}

/// The first packet gets the ClusterIP into its header; kube-proxy's nat rules
/// then make the one conntrack entry, from the node's address to a Pod. A lookup
/// that misses ends the rule without effect.
fn rewrite() -> Chain {
    let to_cluster_ip = |family| {
        let clusterip = Container::ClusterIp(family);
        rule(
            format!(
                "{} daddr set meta l4proto . th dport map @{} accept",
                ip(family),
                clusterip.name()
            ),
            vec![
                set(daddr(family), map(l4proto_dport(), clusterip)),
                accept(),
            ],
        )
    };
    let to_node_port = |family| {
        let (address, ip) = (Container::NodeAddress(family), ip(family));
        let chain = node_port(family).name;
        rule(
            format!(
                "{ip} daddr set meta l4proto . th dport map @{} goto {chain}",
                address.name()
            ),
            vec![
                set(daddr(family), map(l4proto_dport(), address)),
                goto(chain),
            ],
        )
    };
    let mut rules: Vec<Rule> = Family::ALL.map(guarded).into();
    rules.push(rule("counter name rewrite", vec![count(REWRITE_COUNTER)]));
    rules.extend(Family::ALL.map(to_cluster_ip));
    rules.extend(Family::ALL.map(to_node_port));
    Chain {
        name: "rewrite",
        base: None,
        rules,
    }
}

/// Connections to a port that not every client may use.
pub(super) fn guarded(family: Family) -> Rule {
    let guarded = Container::Guarded(family);
    let nfproto = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    rule(
        format!(
            "meta nfproto {nfproto} meta l4proto . th dport @{} jump guard",
            guarded.name()
        ),
        vec![
            is_family(family),
            is_in(l4proto_dport(), guarded),
            jump("guard"),
        ],
    )
}

/// `loadBalancerSourceRanges`, before anything is rewritten. kube-proxy cannot do
/// it: it sees a ClusterIP or a NodePort, for which they do not count.
pub(super) fn guard() -> Chain {
    let allowed = |family| {
        let allowed = Container::Allowed(family);
        rule(
            format!(
                "meta l4proto . th dport . {} saddr @{} return",
                ip(family),
                allowed.name()
            ),
            vec![is_in(l4proto_dport_saddr(family), allowed), back()],
        )
    };
    let mut rules: Vec<Rule> = Family::ALL.map(allowed).into();
    rules.push(rule(
        "counter name denied drop",
        vec![count(DENIED_COUNTER), drop()],
    ));
    Chain {
        name: "guard",
        base: None,
        rules,
    }
}

/// New connections that nobody has claimed: without this a client of a Service
/// without endpoints would wait for its timeout.
fn giveback() -> Rule {
    rule(
        "ct state new ct status & dnat == 0 meta l4proto { tcp, udp, sctp } jump restore",
        vec![
            ct_state(&["new"]),
            is_not_dnatted(),
            has_ports(),
            jump("restore"),
        ],
    )
}

fn restore() -> Chain {
    let address = |family| {
        let (node, ports) = (Container::Node(family), Container::Ports(family));
        let ip = ip(family);
        rule(
            format!(
                "{ip} daddr != @{0} meta l4proto {{ tcp, udp, sctp }} ct original {ip} daddr @{0} \
                 meta l4proto . ct original proto-dst @{1} counter name giveback \
                 {ip} daddr set ct original {ip} daddr accept",
                node.name(),
                ports.name()
            ),
            vec![
                // Else it was never rewritten, because a listener has it.
                is_not_in(daddr(family), node),
                // Without it nft cannot tell the width of `ct original proto-dst`.
                has_ports(),
                is_in(original_daddr(family), node),
                is_in(l4proto_original_dport(), ports),
                count(GIVEBACK_COUNTER),
                set(daddr(family), original_daddr(family)),
                accept(),
            ],
        )
    };
    let address_and_port = |family| {
        let (node, viaport) = (Container::Node(family), Container::ViaPort(family));
        let ip = ip(family);
        rule(
            format!(
                "meta l4proto {{ tcp, udp, sctp }} meta l4proto . th dport != @{1} \
                 ct original {ip} daddr @{0} meta l4proto . ct original proto-dst @{1} \
                 counter name giveback {ip} daddr set ct original {ip} daddr jump restore_port",
                node.name(),
                viaport.name()
            ),
            vec![
                has_ports(),
                // As above: it still has the port the client asked for.
                is_not_in(l4proto_dport(), viaport),
                is_in(original_daddr(family), node),
                is_in(l4proto_original_dport(), viaport),
                count(GIVEBACK_COUNTER),
                set(daddr(family), original_daddr(family)),
                jump("restore_port"),
            ],
        )
    };
    let mut rules: Vec<Rule> = Family::ALL.map(address).into();
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
        rules: set_port("ct original proto-dst", original_dport),
    }
}

/// To the NodePort, at the address where kube-proxy serves it.
fn node_port(family: Family) -> Chain {
    let nodeport = Container::NodePort(family);
    let name = match family {
        Family::V4 => "to_nodeport4",
        Family::V6 => "to_nodeport6",
    };
    let sentence = format!("meta l4proto . th dport map @{}", nodeport.name());
    Chain {
        name,
        base: None,
        rules: set_port(&sentence, || map(l4proto_dport(), nodeport)),
    }
}

/// Sets the destination port. `th dport set` alone would leave the checksum
/// wrong; that of a UDP packet sent without one must stay zero (RFC 768), which
/// `udp dport set` would not do.
fn set_port(value: &str, expression: impl Fn() -> Expression<'static>) -> Vec<Rule> {
    let write = |header: &str| format!("{header} dport set {value} accept");
    vec![
        rule(
            write("tcp"),
            vec![set(dport("tcp"), expression()), accept()],
        ),
        rule(
            format!("udp checksum 0 {}", write("th")),
            vec![
                has_no_udp_checksum(),
                set(dport("th"), expression()),
                accept(),
            ],
        ),
        rule(
            write("udp"),
            vec![set(dport("udp"), expression()), accept()],
        ),
        rule(
            write("sctp"),
            vec![set(dport("sctp"), expression()), accept()],
        ),
    ]
}

/// kube-proxy does not masquerade Pods, nor anyone when it has no cluster CIDR;
/// without this a Pod's reply to a Pod on its own node would go past this node.
/// Ports in `exempt` are none of our business.
pub(super) fn postrouting(family: Family, exempt: Container) -> Rule {
    let (node, ports) = (Container::Node(family), Container::Ports(family));
    rule(
        format!(
            "meta l4proto {{ tcp, udp, sctp }} ct status dnat ct original {} daddr @{} \
             meta l4proto . ct original proto-dst @{} \
             meta l4proto . ct original proto-dst != @{} masquerade fully-random",
            ip(family),
            node.name(),
            ports.name(),
            exempt.name()
        ),
        vec![
            has_ports(),
            is_dnatted(),
            is_in(original_daddr(family), node),
            is_in(l4proto_original_dport(), ports),
            is_not_in(l4proto_original_dport(), exempt),
            masquerade(),
        ],
    )
}
