//! The chains of [`DataPath::FirstPacket`](super::DataPath::FirstPacket). They run before
//! kube-proxy's nat (-100) and after conntrack (-200) and mangle (-150).

use super::{GUARD, INBOUND, OUTPUT, POSTROUTING, PREROUTING, fill};

pub(super) fn chains() -> Vec<String> {
    let to_node_port = |family: &str| {
        let value = format!("meta l4proto . th dport map @nodeport{family}");
        let name = format!("to_nodeport{family}");
        fill(SET_PORT, &[("$name", &name), ("$value", &value)])
    };
    let next = ("$next", "rewrite");
    let priority = ("$priority", "-105");
    let restore_port = [
        ("$name", "restore_port"),
        ("$value", "ct original proto-dst"),
    ];
    vec![
        GUARD.to_owned(),
        to_node_port("4"),
        to_node_port("6"),
        REWRITE.to_owned(),
        fill(INBOUND, &[next]),
        fill(SET_PORT, &restore_port),
        RESTORE.to_owned(),
        fill(PREROUTING, &[priority]),
        // Packets whose header a chain of type route changes are routed again.
        fill(OUTPUT, &[("$type", "route"), priority, next]),
        GIVEBACK.to_owned(),
        // Connections to a NodePort are masqueraded by kube-proxy, as the traffic policy
        // says.
        fill(POSTROUTING, &[("$exempt", "viaport"), ("$hairpin", "")]),
    ]
}

/// The first packet gets the ClusterIP into its header; kube-proxy's nat rules
/// then make the one conntrack entry, from the node's address to a Pod.
const REWRITE: &str = "\
chain rewrite {
  meta nfproto ipv4 meta l4proto . th dport @guarded4 jump guard
  meta nfproto ipv6 meta l4proto . th dport @guarded6 jump guard
  counter name rewrite
  ip daddr set meta l4proto . th dport map @clusterip4 accept
  ip6 daddr set meta l4proto . th dport map @clusterip6 accept
  # To the NodePort, at the address where kube-proxy serves it.
  ip daddr set meta l4proto . th dport map @nodeaddress4 goto to_nodeport4
  ip6 daddr set meta l4proto . th dport map @nodeaddress6 goto to_nodeport6
}";

/// Sets the destination port. `th dport set` alone would leave the checksum
/// wrong; that of a UDP packet sent without one must stay zero (RFC 768), which
/// `udp dport set` would not do.
const SET_PORT: &str = "\
chain $name {
  tcp dport set $value accept
  udp checksum 0 th dport set $value accept
  udp dport set $value accept
  sctp dport set $value accept
}";

/// New connections that kube-proxy, whose nat is before this, has not claimed: without
/// this a client of a Service without endpoints would wait for its timeout.
const GIVEBACK: &str = "\
chain giveback {
  type filter hook prerouting priority -95; policy accept;
  ct state new ct status & dnat == 0 meta l4proto { tcp, udp, sctp } jump restore
}
chain giveback_output {
  type route hook output priority -95; policy accept;
  ct state new ct status & dnat == 0 meta l4proto { tcp, udp, sctp } jump restore
}";

const RESTORE: &str = "\
chain restore {
  # If it does not lead elsewhere, it was never rewritten, because a listener has it.
  # Without its protocol nft cannot tell the width of `ct original proto-dst`.
  ip daddr != @node4 meta l4proto { tcp, udp, sctp } ct original ip daddr @node4 meta l4proto . ct original proto-dst @ports4 counter name giveback ip daddr set ct original ip daddr accept
  ip6 daddr != @node6 meta l4proto { tcp, udp, sctp } ct original ip6 daddr @node6 meta l4proto . ct original proto-dst @ports6 counter name giveback ip6 daddr set ct original ip6 daddr accept
  # As above: one that a listener has still has the port the client asked for.
  meta l4proto { tcp, udp, sctp } meta l4proto . th dport != @viaport4 ct original ip daddr @node4 meta l4proto . ct original proto-dst @viaport4 counter name giveback ip daddr set ct original ip daddr jump restore_port
  meta l4proto { tcp, udp, sctp } meta l4proto . th dport != @viaport6 ct original ip6 daddr @node6 meta l4proto . ct original proto-dst @viaport6 counter name giveback ip6 daddr set ct original ip6 daddr jump restore_port
}";
