//! The chains beside a kube-proxy in ipvs mode.
//!
//! ipvs takes packets at local-in and local-out, after all nat chains, and has
//! conntrack lead the connection to the Pod it has chosen. So a nat rule of ours to
//! the ClusterIP, which `kube-ipvs0` makes local, composes with it.
//!
//! The kernel runs all nat chains of a hook at one place, -100 for destinations:
//! their priorities only order them among each other, and the first that maps a
//! connection wins. What has to come before them (-115) must stand in a chain of type
//! filter.

use super::{GUARD, INBOUND, OUTPUT, POSTROUTING, PREROUTING, fill};

pub(super) fn chains() -> Vec<String> {
    let next = ("$next", "admit");
    let priority = ("$priority", "-115");
    vec![
        GUARD.to_owned(),
        ADMIT.to_owned(),
        fill(INBOUND, &[next]),
        fill(PREROUTING, &[priority]),
        fill(OUTPUT, &[("$type", "filter"), priority, next]),
        NAT.to_owned(),
        // Our nat has kept kube-proxy's from marking the connection, so nothing else
        // masquerades it, whether it goes to a ClusterIP or a NodePort.
        fill(POSTROUTING, &[("$exempt", "localpolicy")]),
    ]
}

/// Who may pass, decided before our nat: whoever is refused is never mapped.
const ADMIT: &str = "\
chain admit {
  meta nfproto ipv4 meta l4proto . th dport @guarded4 jump guard
  meta nfproto ipv6 meta l4proto . th dport @guarded6 jump guard
}";

/// The ClusterIP and the NodePort at the primary address are virtual servers of ipvs.
const NAT: &str = "\
chain to_service {
  counter name rewrite
  dnat ip to meta l4proto . th dport map @clusterip4
  dnat ip6 to meta l4proto . th dport map @clusterip6
  dnat ip to meta l4proto . th dport map @nodeaddress4 : meta l4proto . th dport map @nodeport4
  dnat ip6 to meta l4proto . th dport map @nodeaddress6 : meta l4proto . th dport map @nodeport6
}
chain nat_inbound {
  # As in `inbound`, which has counted it and cannot pass that on without a mark.
  socket wildcard { 0, 1 } accept
  goto to_service
}
chain nat_prerouting {
  type nat hook prerouting priority -110; policy accept;
  ip daddr @node4 meta l4proto . th dport @ports4 jump nat_inbound
  ip6 daddr @node6 meta l4proto . th dport @ports6 jump nat_inbound
}
chain nat_output {
  # No listener rule here either: the socket would be the client's own.
  type nat hook output priority -110; policy accept;
  ip daddr @node4 meta l4proto . th dport @ports4 jump to_service
  ip6 daddr @node6 meta l4proto . th dport @ports6 jump to_service
}";
