//! The chains of [`DataPath::Direct`](super::DataPath::Direct). A nat rule of ours leads each
//! connection to its target, so nothing else has to act on it.

use super::{chains_by_nat, fill};
use crate::table::buckets::BUCKETS;

pub(super) fn chains() -> Vec<String> {
    let buckets = BUCKETS.to_string();
    chains_by_nat(fill(TO_SERVICE, &[("$buckets", &buckets)]))
}

/// One look-up gives the target's address and port, from the port and a number below
/// `$buckets`. The maps have an element for each of these numbers, so every port has its own
/// targets and the rules stay the same.
const TO_SERVICE: &str = "\
chain to_service {
  counter name rewrite
  # Without a seed the kernel would take another one for each rule and each table: clients
  # would change targets whenever the table is replaced, and from box to box.
  meta l4proto . th dport @sticky4 dnat ip to meta l4proto . th dport . jhash ip saddr mod $buckets seed 0x4877 map @target4
  meta l4proto . th dport @sticky6 dnat ip6 to meta l4proto . th dport . jhash ip6 saddr mod $buckets seed 0x4877 map @target6
  # For each connection anew.
  dnat ip to meta l4proto . th dport . numgen random mod $buckets map @target4
  dnat ip6 to meta l4proto . th dport . numgen random mod $buckets map @target6
}";
