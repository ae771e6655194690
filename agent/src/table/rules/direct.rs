//! The chains of [`DataPath::Direct`](super::DataPath::Direct). A nat rule of ours leads each
//! connection to its target, so nothing else has to act on it.

use super::{HAIRPIN, chains_by_nat, fill};
use crate::{
    decide::Memory,
    table::{buckets::Width, sets::CLIENTS},
};

pub(super) fn chains() -> Vec<String> {
    let widths = [Width::One, Width::Narrow, Width::Wide];
    let [one, few, many] = widths.map(|width| width.buckets().to_string());
    let clients = CLIENTS.to_string();
    let values = [
        ("$one", &*one),
        ("$few", &few),
        ("$many", &many),
        ("$clients", &clients),
    ];
    let to_service = fill(TO_SERVICE, &values);
    let mut chains = vec![fill(UNUSED, &values)];
    chains.extend(chains_by_nat(to_service, HAIRPIN));
    chains.extend([remember("4", "ip"), remember("6", "ip6")]);
    chains.push(REMEMBERING.to_owned());
    chains
}

/// A chain that remembers the target of a client.
fn remember(digit: &str, ip: &str) -> String {
    let steps = Memory::SECONDS.map(|seconds| {
        let seconds = seconds.to_string();
        fill(REMEMBER_FOR, &[("$seconds", &seconds)])
    });
    let client = format!(
        "meta l4proto . ct original proto-dst . jhash {ip} saddr mod {CLIENTS} seed 0x4877"
    );
    let values = [
        ("$digit", digit),
        ("$ip", ip),
        ("$client ", &format!("{client} ")),
    ];
    fill(&REMEMBER.replace("$steps", &steps.concat()), &values)
}

/// Nothing jumps here. Because the targets' maps are declared with `tcp dport`
/// ([`Set::typeof_text`](crate::table::Set::typeof_text)), nft adds `meta l4proto tcp` to the first
/// rule that uses each of them, and to no other.
const UNUSED: &str = "\
chain unused {
  dnat ip to meta l4proto . th dport . numgen random mod $many map @target4
  dnat ip6 to meta l4proto . th dport . numgen random mod $many map @target6
}";

/// One look-up gives the target's address and port, from the port and a number below `$few`,
/// or, for ports with many targets, `$many`. The maps have an element for each of these
/// numbers, so every port has its own targets and the rules stay the same.
///
/// A port without targets is in none of these maps: its clients come to the node's own stack,
/// which refuses them.
const TO_SERVICE: &str = "\
chain to_service {
  counter name rewrite
  # The target that the client had last …
  meta l4proto . th dport @sticky4 dnat ip to meta l4proto . th dport . jhash ip saddr mod $clients seed 0x4877 map @clientaddress4 : meta l4proto . th dport . jhash ip saddr mod $clients seed 0x4877 map @clientport4
  meta l4proto . th dport @sticky6 dnat ip6 to meta l4proto . th dport . jhash ip6 saddr mod $clients seed 0x4877 map @clientaddress6 : meta l4proto . th dport . jhash ip6 saddr mod $clients seed 0x4877 map @clientport6
  # … or one by its address. Without a seed the kernel would take another one for each rule and each table: clients
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
  # A port with one target: nearly all of the numbers above missed it.
  dnat ip to meta l4proto . th dport . numgen random mod $one map @target4
  dnat ip6 to meta l4proto . th dport . numgen random mod $one map @target6
}";

/// What a client of a sticky port got, after our nat (-110, run at -100). A client whose target
/// is none any more is forgotten: it sends its packet again, and gets another.
const REMEMBER: &str = "\
chain remember$digit {
  # Without its protocol nft cannot tell the width of `ct original proto-dst`.
  meta l4proto { tcp, udp, sctp } meta l4proto . ct original proto-dst . $ip daddr . th dport != @alive$digit delete @clientport$digit { $client : th dport } delete @clientaddress$digit { $client : $ip daddr } drop
$steps}";

/// `update` begins the time anew, and leaves a value as it is. The port is first: where its map
/// is full, the rule ends.
const REMEMBER_FOR: &str = "\
  meta l4proto { tcp, udp, sctp } meta l4proto . ct original proto-dst @keep$secondss$digit update @clientport$digit { $client timeout $secondss : th dport } update @clientaddress$digit { $client timeout $secondss : $ip daddr }
";

/// Only the packet that opens a connection has no confirmed entry. One that is sent again, as
/// long as there is no answer, follows the entry: to a Pod that may be gone, when the client has
/// another one, which it must not forget.
const REMEMBERING: &str = "\
chain remember_prerouting {
  type filter hook prerouting priority -95; policy accept;
  ct state new ct status dnat ct status & confirmed == 0 meta l4proto { tcp, udp, sctp } ct original ip daddr @node4 meta l4proto . ct original proto-dst @sticky4 jump remember4
  ct state new ct status dnat ct status & confirmed == 0 meta l4proto { tcp, udp, sctp } ct original ip6 daddr @node6 meta l4proto . ct original proto-dst @sticky6 jump remember6
}
chain remember_output {
  type filter hook output priority -95; policy accept;
  ct state new ct status dnat ct status & confirmed == 0 meta l4proto { tcp, udp, sctp } ct original ip daddr @node4 meta l4proto . ct original proto-dst @sticky4 jump remember4
  ct state new ct status dnat ct status & confirmed == 0 meta l4proto { tcp, udp, sctp } ct original ip6 daddr @node6 meta l4proto . ct original proto-dst @sticky6 jump remember6
}";
