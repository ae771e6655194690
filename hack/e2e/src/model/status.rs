//! What a Service's status has to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::arbitration::{Verdict, verdicts};
use super::endpoints::ready_pods;
use super::violation::Violation;
use super::world::{AgentState, Node, Protocol, Service, World};

/// What a node is to a Service.
enum Standing {
    /// It has to be listed, at addresses of these families if it has any.
    Eligible(Vec<bool>),
    /// Whether it is listed is not modelled: too many agents are silent to say.
    Unknown,
    /// It must not be listed.
    Not,
}

/// All that is wrong with the statuses.
pub(super) fn violations(world: &World) -> Vec<Violation> {
    let all: BTreeMap<&str, BTreeMap<String, Verdict>> = world
        .nodes
        .values()
        .map(|node| (node.name.as_str(), verdicts(world, node)))
        .collect();
    let mut violations = Vec::new();
    for service in world.services.values() {
        let mut say = |what: String| {
            violations.push(Violation::Status {
                service: service.key.clone(),
                what,
            });
        };
        if service.is_abandoned() {
            continue;
        }
        if !service.is_ours() || service.is_unsupported() {
            nothing_listed(service, &mut say);
            continue;
        }
        listed(world, service, &all, &mut say);
        conflicts(world, service, &all, &mut say);
    }
    violations
}

fn nothing_listed(service: &Service, say: &mut impl FnMut(String)) {
    if service.author == super::world::Author::Highwire {
        say(format!(
            "it is not ours to serve, and lists {:?}",
            service.ingress
        ));
    }
    for (kind, condition) in &service.conditions {
        let is_ours = kind == "LoadBalancerPortsError" || kind == "highwire.dev/Serving";
        if is_ours && condition.status == "True" {
            say(format!("it is not ours to serve, and {kind} is True"));
        }
    }
}

fn standing(
    world: &World,
    service: &Service,
    node: &Node,
    verdict: Option<&Verdict>,
    many_silent: bool,
) -> Standing {
    if !node.is_enabled() || node.is_excluded() || !node.ready || !service.selects_node(node) {
        return Standing::Not;
    }
    match node.agent {
        AgentState::Running => {}
        _ if many_silent => return Standing::Unknown,
        _ => return Standing::Not,
    }
    if matches!(verdict, Some(Verdict::Refused(_))) {
        return Standing::Not;
    }
    let families = service.families.iter().copied();
    let families: Vec<bool> = families
        .filter(|v6| {
            !service.external_local || ready_pods(world, service, *v6, Some(node)).next().is_some()
        })
        .collect();
    match families.is_empty() {
        true => Standing::Not,
        false => Standing::Eligible(families),
    }
}

fn listed(
    world: &World,
    service: &Service,
    verdicts: &BTreeMap<&str, BTreeMap<String, Verdict>>,
    say: &mut impl FnMut(String),
) {
    let enabled = world.nodes.values().filter(|node| node.is_enabled());
    let silent = enabled.filter(|node| node.agent != AgentState::Running);
    let many_silent = silent.count() >= 2;
    let mut eligible: Vec<(&Node, Vec<bool>)> = Vec::new();
    for node in world.nodes.values() {
        let verdict = verdicts[node.name.as_str()].get(&service.key);
        match standing(world, service, node, verdict, many_silent) {
            Standing::Eligible(families) => eligible.push((node, families)),
            Standing::Unknown => return,
            Standing::Not => {}
        }
    }
    let mut wanted: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for v6 in service.families.iter().copied() {
        let of_type = |external: bool| {
            let nodes = eligible.iter().filter(move |(_, it)| it.contains(&v6));
            nodes.flat_map(move |(node, _)| {
                let addresses = node.addresses.iter();
                let addresses =
                    addresses.filter(move |it| it.1 == external && it.0.is_ipv6() == v6);
                addresses.map(|(address, _)| (*address, node.name.as_str()))
            })
        };
        let chosen: Vec<_> = match service.annotation("address-type") {
            Some("ExternalIP") => of_type(true).collect(),
            Some("InternalIP") => of_type(false).collect(),
            _ if of_type(true).next().is_some() => of_type(true).collect(),
            _ => of_type(false).collect(),
        };
        wanted.extend(chosen);
    }
    let ports: BTreeSet<(Protocol, u16)> = service
        .ports
        .iter()
        .map(|it| (it.protocol, it.port))
        .collect();
    let found: BTreeSet<IpAddr> = service.ingress.iter().map(|entry| entry.ip).collect();
    for entry in &service.ingress {
        if entry.ports != ports || entry.is_vip {
            say(format!(
                "it lists {entry:?} instead of ports {ports:?} with ipMode Proxy"
            ));
        }
    }
    let all: BTreeSet<IpAddr> = wanted.keys().copied().collect();
    let possible: BTreeSet<&str> = wanted.values().copied().collect();
    let is_limited = possible.len() > service.max_addresses();
    if is_limited {
        let nodes: BTreeSet<&str> = found
            .iter()
            .filter_map(|it| wanted.get(it).copied())
            .collect();
        let whole = wanted.iter().filter(|(_, node)| nodes.contains(*node));
        let whole: BTreeSet<IpAddr> = whole.map(|(address, _)| *address).collect();
        if whole != found || nodes.len() != service.max_addresses() {
            let most = service.max_addresses();
            say(format!(
                "it lists {found:?}, not {most} of the nodes with {all:?}"
            ));
        }
    } else if found != all {
        say(format!("it lists {found:?} instead of {all:?}"));
    }
    serving(service, all.is_empty(), is_limited, say);
}

fn serving(service: &Service, is_empty: bool, limited: bool, say: &mut impl FnMut(String)) {
    let condition = service.conditions.get("highwire.dev/Serving");
    match (is_empty, condition) {
        // That one says why, if it is all there is to say.
        (true, None) if is_true(service, "LoadBalancerPortsError") => {}
        (true, None) => say("it has no address and no condition says why".to_owned()),
        (true, Some(it)) if it.status != "False" => {
            say(format!(
                "it has no address, and highwire.dev/Serving is {it:?}"
            ));
        }
        (false, Some(it)) if it.status != "True" => {
            say(format!(
                "it has addresses, and highwire.dev/Serving is {it:?}"
            ));
        }
        (false, it) if limited != it.is_some_and(|it| it.reason == "Limited") => {
            say(format!(
                "limited: {limited}, and highwire.dev/Serving is {it:?}"
            ));
        }
        _ => {}
    }
}

fn is_true(service: &Service, condition: &str) -> bool {
    let condition = service.conditions.get(condition);
    condition.is_some_and(|it| it.status == "True")
}

/// The condition of KEP-1435.
fn conflicts(
    world: &World,
    service: &Service,
    verdicts: &BTreeMap<&str, BTreeMap<String, Verdict>>,
    say: &mut impl FnMut(String),
) {
    let mut reasons = BTreeSet::new();
    let mut is_refused = false;
    let mut several = false;
    for node in world.nodes.values() {
        if node.is_enabled() && node.agent != AgentState::Running {
            // What it last reported may count or not.
            return;
        }
        let verdict = verdicts[node.name.as_str()].get(&service.key);
        let Some(Verdict::Refused(slots)) = verdict.filter(|_| node.is_active()) else {
            continue;
        };
        is_refused = true;
        for words in slots.values() {
            several |= words.len() > 1;
            reasons.extend(words.iter().copied());
        }
    }
    let condition = service.conditions.get("LoadBalancerPortsError");
    if is_true(service, "LoadBalancerPortsError") != is_refused {
        say(format!(
            "refused for {reasons:?}, and LoadBalancerPortsError is {condition:?}"
        ));
    } else if let Some(condition) = condition.filter(|_| is_refused) {
        let reason = condition.reason.as_str();
        let is_right = match (reasons.len(), several) {
            (1, false) => reasons.contains(reason),
            (_, false) => reason == "MultiplePortConflicts",
            (_, true) => reason == "MultiplePortConflicts" || reasons.contains(reason),
        };
        if !is_right {
            say(format!(
                "refused for {reasons:?}, and LoadBalancerPortsError says {reason}"
            ));
        }
    }
}
