//! The chains of [`DataPath::Direct`](super::DataPath::Direct). A nat rule of ours leads each
//! connection to its target, so nothing else has to act on it.

use super::{HAIRPIN, chains_by_nat, fill};
use crate::table::buckets::Width;

pub(super) fn chains() -> Vec<String> {
    let [few, many] = [Width::Narrow, Width::Wide].map(|width| width.buckets().to_string());
    let to_service = fill(TO_SERVICE, &[("$few", &few), ("$many", &many)]);
    chains_by_nat(to_service, HAIRPIN)
}

/// One look-up gives the target's address and port, from the port and a number below `$few`,
/// or, for ports with many targets, `$many`. The maps have an element for each of these
/// numbers, so every port has its own targets and the rules stay the same.
///
/// A port without targets is in none of these maps: its clients come to the node's own stack,
/// which refuses them.
const TO_SERVICE: &str = "\
chain to_service {
  counter name rewrite
  # Without a seed the kernel would take another one for each rule and each table: clients
  # would change targets whenever the table is replaced, and from box to box.
  meta l4proto . th dport @sticky4 meta l4proto . th dport @wide4 dnat ip to meta l4proto . th dport . jhash ip saddr mod $many seed 0x4877 map @target4
  meta l4proto . th dport @sticky6 meta l4proto . th dport @wide6 dnat ip6 to meta l4proto . th dport . jhash ip6 saddr mod $many seed 0x4877 map @target6
  meta l4proto . th dport @sticky4 dnat ip to meta l4proto . th dport . jhash ip saddr mod $few seed 0x4877 map @target4
  meta l4proto . th dport @sticky6 dnat ip6 to meta l4proto . th dport . jhash ip6 saddr mod $few seed 0x4877 map @target6
  # For each connection anew.
  meta l4proto . th dport @wide4 dnat ip to meta l4proto . th dport . numgen random mod $many map @target4
  meta l4proto . th dport @wide6 dnat ip6 to meta l4proto . th dport . numgen random mod $many map @target6
  dnat ip to meta l4proto . th dport . numgen random mod $few map @target4
  dnat ip6 to meta l4proto . th dport . numgen random mod $few map @target6
}";
