//! What agents have to report and to explain.

use std::collections::BTreeMap;

use super::arbitration::{Verdict, verdicts};
use super::violation::Violation;
use super::world::{AgentState, Explained, Node, NodeReport, World};

/// All that is wrong with the LoadBalancerNodes, the Leases and the agents' explanations.
pub(super) fn violations(world: &World) -> Vec<Violation> {
    let mut violations = Vec::new();
    for name in world.reports.keys().chain(&world.leases) {
        if !world.nodes.contains_key(name) {
            violations.push(report(name, "there is no such Node".to_owned()));
        }
    }
    for node in world.nodes.values() {
        match (node.is_enabled(), node.agent) {
            (true, AgentState::Running) => {
                let verdicts = verdicts(world, node);
                match world.reports.get(&node.name) {
                    Some(found) => reported(node, found, &verdicts, &mut violations),
                    None => violations.push(report(&node.name, "there is none".to_owned())),
                }
                if !world.leases.contains(&node.name) {
                    violations.push(report(&node.name, "there is no Lease".to_owned()));
                }
                match &node.explained {
                    Some(found) => explained(world, node, found, &verdicts, &mut violations),
                    None => violations.push(explain(&node.name, "no answer".to_owned())),
                }
            }
            (false, AgentState::None) => {
                if world.reports.contains_key(&node.name) || world.leases.contains(&node.name) {
                    let what = "it has opted out, and its report or Lease is there";
                    violations.push(report(&node.name, what.to_owned()));
                }
                if node.has_table {
                    let what = "it has opted out, and the table is there";
                    violations.push(explain(&node.name, what.to_owned()));
                }
            }
            _ => {}
        }
    }
    violations
}

fn report(node: &str, what: String) -> Violation {
    Violation::Report {
        node: node.to_owned(),
        what,
    }
}

fn explain(node: &str, what: String) -> Violation {
    Violation::Explain {
        node: node.to_owned(),
        what,
    }
}

fn reported(
    node: &Node,
    found: &NodeReport,
    verdicts: &BTreeMap<String, Verdict>,
    violations: &mut Vec<Violation>,
) {
    let mut say = |what: String| violations.push(report(&node.name, what));
    if !found.ready.starts_with("True ") {
        say(format!("Ready is {}", found.ready));
    }
    if found.addresses != node.host_addresses {
        say(format!(
            "it serves at {:?} instead of {:?}",
            found.addresses, node.host_addresses
        ));
    }
    if found.proxy_mode != node.proxy_mode {
        say(format!(
            "kube-proxy's mode is {}, not {:?}",
            node.proxy_mode, found.proxy_mode
        ));
    }
    let served = verdicts.values().filter(|it| **it == Verdict::Served);
    let served = served.count();
    if found.services != served as u64 {
        say(format!(
            "it serves {} Services instead of {served}",
            found.services
        ));
    }
    // Each refused port of the rules has to be there with a right reason, and no other.
    let mut wanted: BTreeMap<(String, String, u16), Vec<&str>> = BTreeMap::new();
    for (service, verdict) in verdicts {
        let Verdict::Refused(slots) = verdict else {
            continue;
        };
        for ((_, protocol, port), reasons) in slots {
            let key = (service.clone(), protocol.to_string(), *port);
            wanted.entry(key).or_default().extend(reasons);
        }
    }
    for (service, protocol, port, reason) in &found.conflicts {
        let reasons = wanted.get(&(service.clone(), protocol.clone(), *port));
        if !reasons.is_some_and(|all| all.contains(&reason.as_str())) {
            say(format!(
                "it refuses {port}/{protocol} to {service} for {reason}; right would be {reasons:?}"
            ));
        }
    }
    for ((service, protocol, port), reasons) in &wanted {
        let mut conflicts = found.conflicts.iter();
        if !conflicts.any(|it| (&it.0, &it.1, it.2) == (service, protocol, *port)) {
            say(format!(
                "it does not say that {port}/{protocol} is refused to {service} for {reasons:?}"
            ));
        }
    }
}

fn explained(
    world: &World,
    node: &Node,
    found: &Explained,
    verdicts: &BTreeMap<String, Verdict>,
    violations: &mut Vec<Violation>,
) {
    let mut say = |what: String| violations.push(explain(&node.name, what));
    if found.table.0 != "asWanted" {
        say(format!("the table is {}: {}", found.table.0, found.table.1));
    }
    for ((service, protocol, port), state) in &found.rows {
        let is_right = match verdicts.get(service) {
            Some(Verdict::Served) => state == "served asWanted",
            Some(Verdict::Refused(slots)) => match state.strip_prefix("refused ") {
                Some(reason) => slots.iter().any(|((_, its, number), reasons)| {
                    (its.to_string() == *protocol && number == port) && reasons.contains(reason)
                }),
                None => state == "notServed",
            },
            None => state == "notServed",
        };
        if !is_right {
            let verdict = verdicts.get(service);
            say(format!(
                "{port}/{protocol} of {service} is {state}; right is {verdict:?}"
            ));
        }
    }
    for service in verdicts.keys() {
        for port in world.services.get(service).iter().flat_map(|it| &it.ports) {
            let row = (service.clone(), port.protocol.to_string(), port.port);
            if !found.rows.contains_key(&row) {
                say(format!("{row:?} is missing"));
            }
        }
    }
}
