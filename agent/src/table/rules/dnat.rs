//! The chains beside a kube-proxy in ipvs mode.
//!
//! ipvs takes packets at local-in and local-out, after all nat chains, and has
//! conntrack lead the connection to the Pod it has chosen. So a nat rule of ours to
//! the ClusterIP, which `kube-ipvs0` makes local, composes with it.

use super::chains_by_nat;

pub(super) fn chains() -> Vec<String> {
    chains_by_nat(TO_SERVICE.to_owned(), "")
}

/// The ClusterIP and the NodePort at the primary address are virtual servers of ipvs.
const TO_SERVICE: &str = "\
chain to_service {
  counter name rewrite
  dnat ip to meta l4proto . th dport map @clusterip4
  dnat ip6 to meta l4proto . th dport map @clusterip6
  dnat ip to meta l4proto . th dport map @nodeaddress4 : meta l4proto . th dport map @nodeport4
  dnat ip6 to meta l4proto . th dport map @nodeaddress6 : meta l4proto . th dport map @nodeport6
}";
