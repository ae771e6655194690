//! The chains and rules, which depend on the [`DataPath`] alone: nft's own text. Lines
//! that begin with `#` are for readers, and words that begin with `$` are filled in.
//!
//! What several tables have is here. An address family needs a rule of its own; a look-up
//! that misses ends its rule without effect.

mod direct;
mod dnat;
mod first_packet;

use super::DataPath;

/// The counters of the table, of new connections: left to a listener on the host;
/// rewritten towards a Service; given back to the node's own stack, which refuses them,
/// because no rule took them after the rewrite; of clients that a Service does not let in.
pub(super) const COUNTERS: [&str; 4] = ["listener", "rewrite", "giveback", "denied"];

/// The chains of a table as nft reads them, a line each; those that are jumped to come
/// before those that jump.
pub(super) fn chains(path: DataPath) -> Vec<String> {
    let chains = match path {
        DataPath::FirstPacket => first_packet::chains(),
        DataPath::Dnat => dnat::chains(),
        DataPath::Direct => direct::chains(),
    };
    let lines = chains.iter().flat_map(|chain| chain.lines());
    let rules = lines.filter(|line| !line.trim_start().starts_with('#'));
    rules.map(str::to_owned).collect()
}

/// Those of a table in which the chain `to_service` makes the conntrack entry, by a nat rule.
///
/// The kernel runs all nat chains of a hook at one place, -100 for destinations:
/// their priorities only order them among each other, and the first that maps a
/// connection wins. What has to come before them (-115) must stand in a chain of type
/// filter. `hairpin` stands in the chain that masquerades.
fn chains_by_nat(to_service: String, hairpin: &str) -> Vec<String> {
    let next = ("$next", "admit");
    let priority = ("$priority", "-115");
    vec![
        GUARD.to_owned(),
        ADMIT.to_owned(),
        fill(INBOUND, &[next]),
        fill(PREROUTING, &[priority]),
        fill(OUTPUT, &[("$type", "filter"), priority, next]),
        to_service,
        NAT.to_owned(),
        // Our nat has kept kube-proxy's from marking the connection, so nothing else
        // masquerades it, wherever it goes.
        fill(
            POSTROUTING,
            &[("$exempt", "localpolicy"), ("$hairpin", hairpin)],
        ),
    ]
}

/// The names of [`chains`], each with whether the kernel runs it by itself.
pub(super) fn chain_names(path: DataPath) -> impl Iterator<Item = (String, bool)> {
    let lines = chains(path);
    let mut names: Vec<(String, bool)> = Vec::new();
    for line in &lines {
        if let Some(name) = line.strip_prefix("chain ") {
            names.push((name.trim_end_matches(" {").to_owned(), false));
        } else if let (true, Some(last)) = (line.contains(" hook "), names.last_mut()) {
            last.1 = true;
        }
    }
    names.into_iter()
}

fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let text = template.to_owned();
    values
        .iter()
        .fold(text, |text, (name, value)| text.replace(name, value))
}

/// `loadBalancerSourceRanges`, before anything is rewritten. kube-proxy cannot do
/// it: it sees a ClusterIP or a NodePort, for which they do not count.
const GUARD: &str = "\
chain guard {
  meta l4proto . th dport . ip saddr @allowed4 return
  meta l4proto . th dport . ip6 saddr @allowed6 return
  counter name denied drop
}";

/// Packets for a served address and port. Those that open a connection go on to `$next`.
const INBOUND: &str = "\
chain inbound {
  # Whoever may bind a host port is trusted more than whoever may create a Service.
  socket wildcard { 0, 1 } counter name listener accept
  # Else the node's own stack would reset the client's connection.
  ct state invalid drop
  ct state new jump $next
}";

/// Who may pass, decided before our nat: whoever is refused is never mapped.
const ADMIT: &str = "\
chain admit {
  meta nfproto ipv4 meta l4proto . th dport @guarded4 jump guard
  meta nfproto ipv6 meta l4proto . th dport @guarded6 jump guard
}";

/// Packets from outside and from Pods.
const PREROUTING: &str = "\
chain prerouting {
  type filter hook prerouting priority $priority; policy accept;
  ct state established,related accept
  ip daddr @node4 meta l4proto . th dport @ports4 jump inbound
  ip6 daddr @node6 meta l4proto . th dport @ports6 jump inbound
}";

/// Packets of clients on the node itself. No listener rule here: the socket would be the
/// client's own.
const OUTPUT: &str = "\
chain output {
  type $type hook output priority $priority; policy accept;
  ct state new ip daddr @node4 meta l4proto . th dport @ports4 jump $next
  ct state new ip6 daddr @node6 meta l4proto . th dport @ports6 jump $next
}";

/// Connections that are let in go on to `to_service`.
const NAT: &str = "\
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

/// A target that sees its clients' addresses would see its own, and answer itself.
const HAIRPIN: &str = "
  ct status dnat ip saddr . ip daddr @hairpin4 masquerade fully-random
  ct status dnat ip6 saddr . ip6 daddr @hairpin6 masquerade fully-random";

/// kube-proxy does not masquerade Pods, nor any client when it has no cluster CIDR;
/// without this a Pod's reply to a Pod on its own node would go past this node. It is
/// after kube-proxy's masquerade (100): what that has masqueraded is left alone, as are
/// ports in `$exempt`. A port by chance, since the kernel drops one of two connections that
/// take the same port at the same moment (docs/faults.md has figures).
const POSTROUTING: &str = "\
chain postrouting {
  type nat hook postrouting priority 105; policy accept;$hairpin
  meta l4proto { tcp, udp, sctp } ct status dnat ct original ip daddr @node4 meta l4proto . ct original proto-dst @ports4 meta l4proto . ct original proto-dst != @$exempt4 masquerade fully-random
  meta l4proto { tcp, udp, sctp } ct status dnat ct original ip6 daddr @node6 meta l4proto . ct original proto-dst @ports6 meta l4proto . ct original proto-dst != @$exempt6 masquerade fully-random
}";
