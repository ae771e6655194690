//! What the statuses of LoadBalancers and ExternalLoadBalancers should say. Pure.

use std::collections::{BTreeMap, BTreeSet};

use highwire_api::{
    ServiceKey,
    external::{
        ACCEPTED, BoxPort, EDGE_READY, ExternalLoadBalancer, ExternalLoadBalancerStatus,
        LoadBalancer, LoadBalancerStatus, READY, Trouble, spec::RecordedBackend,
    },
    names::edge_lease,
};
use highwire_runtime::printable::printable;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    backend::{Backend, backends},
    driver::Report,
    edges::Edge,
    plan::{Usage, Wanted},
};
use crate::decision::{
    conditions::{Says, amended},
    text,
};

/// That a time alone is newer is written this often at most, in seconds.
const SYNC_NOTED: i64 = 60;

/// The status that a LoadBalancer should have. `external` is its ExternalLoadBalancer.
#[must_use]
pub fn load_balancer(
    key: &ServiceKey,
    object: &LoadBalancer,
    wanted: &Wanted,
    external: Option<&ExternalLoadBalancer>,
    report: Option<&Report>,
    now: Timestamp,
) -> LoadBalancerStatus {
    let known = object.status.clone().unwrap_or_default();
    let refused = wanted.refused.as_ref();
    let accepted = refused.map_or(says_true("Accepted"), |refused| {
        says_false(refused.trouble, &refused.message)
    });
    let (served, ready) = served(key, object, wanted, external, report, &known);
    let addresses = match external {
        Some(external) if served => external.spec.addresses.clone(),
        _ => Vec::new(),
    };
    let generation = object.metadata.generation;
    let conditions = [(ACCEPTED, accepted), (READY, ready)]
        .map(|(type_, says)| condition(&known.conditions, type_, says, generation, now));
    let of_edge = known.conditions.iter().find(|it| it.type_ == EDGE_READY);
    let ports = object.spec.ports.iter();
    let targets = ports.clone().flat_map(|port| &port.targets);
    let targets: BTreeSet<_> = targets.map(|target| target.address).collect();
    LoadBalancerStatus {
        conditions: conditions.into_iter().chain(of_edge.cloned()).collect(),
        host: addresses.join(","),
        addresses,
        conflicts: refused.map(|it| it.conflicts.clone()).unwrap_or_default(),
        ports: ports.map(port).collect::<Vec<_>>().join(" "),
        targets: u32::try_from(targets.len()).unwrap_or(u32::MAX),
    }
}

/// As people read it: `443/TCP`, or `8001:80/TCP` with the box's port first.
fn port(port: &BoxPort) -> String {
    let protocol = port.protocol.as_str();
    if port.box_port == port.port {
        format!("{}/{protocol}", port.port)
    } else {
        format!("{}:{}/{protocol}", port.box_port, port.port)
    }
}

/// Whether the Service may list the box, and what the condition `Ready` says. What the box
/// had once it has still while its updater fails.
fn served(
    key: &ServiceKey,
    object: &LoadBalancer,
    wanted: &Wanted,
    external: Option<&ExternalLoadBalancer>,
    report: Option<&Report>,
    known: &LoadBalancerStatus,
) -> (bool, Says) {
    let Some(external) = external else {
        let message = "its ExternalLoadBalancer does not exist";
        return (false, says_false(Trouble::NoExternalLoadBalancer, message));
    };
    if object.spec.ports.is_empty() {
        let says = match &wanted.refused {
            Some(refused) => says_false(refused.trouble, &refused.message),
            None => says_false(Trouble::Waiting, "it has no port on the box yet"),
        };
        return (false, says);
    }
    if object.spec.ports.iter().all(|port| port.targets.is_empty()) {
        let message = "no node could answer: of the Nodes that are Ready, not excluded and \
                       match its node selector, none has an address of the type and IP family \
                       asked for, or, with externalTrafficPolicy Local, a ready endpoint";
        return (false, says_false(Trouble::NoTargets, message));
    }
    let was_served = !known.addresses.is_empty();
    let Some(updater) = &external.spec.http_updater else {
        return served_by_edge(object, known);
    };
    let asked: BTreeMap<RecordedBackend, Backend> =
        backends(key, &object.spec, &updater.url).collect();
    let waiting = || says_false(Trouble::Waiting, "the box was not sent everything yet");
    let Some(report) = report else {
        return (was_served, waiting());
    };
    if asked.keys().all(|name| report.taken.contains(name)) {
        return (true, says_true("Serving"));
    }
    let failure = asked.keys().find_map(|name| report.failing.get(name));
    let says = failure.map_or_else(waiting, |(trouble, message)| says_false(*trouble, message));
    (was_served, says)
}

/// The agent on the box says what it has. While it is silent, or has not seen the last change,
/// the box still has what it had.
fn served_by_edge(object: &LoadBalancer, known: &LoadBalancerStatus) -> (bool, Says) {
    let was_served = !known.addresses.is_empty();
    let stated = known.conditions.iter().find(|it| it.type_ == EDGE_READY);
    let Some(stated) = stated.filter(|it| it.observed_generation == object.metadata.generation)
    else {
        let message = "the agent on the box has not seen it yet; does it run?";
        return (was_served, says_false(Trouble::Waiting, message));
    };
    if stated.status == "True" {
        return (true, says_true("Serving"));
    }
    let trouble = Trouble::of(&stated.reason).unwrap_or(Trouble::EdgeFailing);
    let is_refused = trouble == Trouble::PortConflict;
    (
        was_served && !is_refused,
        says_false(trouble, &printable(&stated.message)),
    )
}

fn says_true(reason: &'static str) -> Says {
    ("True", reason, String::new())
}

fn says_false(trouble: Trouble, message: &str) -> Says {
    (
        "False",
        trouble.as_str(),
        text::shortened(message.to_owned()),
    )
}

/// The condition, with the time at which its status last changed.
fn condition(
    known: &[Condition],
    type_: &str,
    says: Says,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let stated = known.iter().find(|it| it.type_ == type_);
    let (status, reason, message) = says.clone();
    amended(stated, type_, says, generation, now)
        .or_else(|| stated.cloned())
        .unwrap_or(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: Time(now),
        })
}

/// What a box may have, wanted and not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What it should have.
    pub backends: BTreeSet<RecordedBackend>,
    /// What has to be deleted there still.
    pub deleted: BTreeSet<RecordedBackend>,
}

impl Record {
    /// What the box may have according to its status, once it should have these and has
    /// deleted those.
    #[must_use]
    pub fn after(
        status: Option<&ExternalLoadBalancerStatus>,
        wanted: BTreeSet<RecordedBackend>,
        gone: &BTreeSet<RecordedBackend>,
    ) -> Self {
        let known = known(status);
        let deleted = known
            .difference(&wanted)
            .filter(|name| !gone.contains(*name));
        Self {
            deleted: deleted.cloned().collect(),
            backends: wanted,
        }
    }
}

/// Everything that the box may have according to its status.
#[must_use]
pub fn known(status: Option<&ExternalLoadBalancerStatus>) -> BTreeSet<RecordedBackend> {
    let status = status.into_iter();
    let all = status.flat_map(|it| it.backends.iter().chain(&it.pending_deletions));
    all.cloned().collect()
}

/// The status of an ExternalLoadBalancer whose box runs an agent of its own.
#[must_use]
pub fn of_edge(
    object: &ExternalLoadBalancer,
    usage: Usage,
    edge: Edge,
    now: Timestamp,
) -> ExternalLoadBalancerStatus {
    let known = object.status.clone().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let says = match edge {
        Edge::Alive => says_true("Connected"),
        Edge::Silent => {
            let message = format!(
                "the agent on the box does not renew its Lease {}; does `highwire-agent edge \
                 --name {name}` run there?",
                edge_lease(name)
            );
            says_false(Trouble::EdgeSilent, &message)
        }
    };
    let generation = object.metadata.generation;
    ExternalLoadBalancerStatus {
        conditions: vec![condition(&known.conditions, READY, says, generation, now)],
        ports_in_use: usage.used,
        ports_free: usage.free,
        ..known
    }
}

/// The status that an ExternalLoadBalancer with an updater should have.
#[must_use]
pub fn external(
    object: &ExternalLoadBalancer,
    record: Record,
    usage: Usage,
    report: &Report,
    now: Timestamp,
) -> ExternalLoadBalancerStatus {
    let known = object.status.clone().unwrap_or_default();
    let missing = record.backends.iter();
    let missing = missing.filter(|name| !report.taken.contains(*name));
    let missing = missing.count() + record.deleted.len();
    let failures: Vec<_> = report.failing.iter().collect();
    let says = match *failures {
        [] if missing == 0 => says_true("Synced"),
        [] => says_false(Trouble::Waiting, "the box was not sent everything yet"),
        [(name, (trouble, message)), ..] => {
            let (count, name) = (failures.len(), &name.backend_name);
            let message = format!("{count} backends, such as {name}: {message}");
            says_false(*trouble, &message)
        }
    };
    let synced = report.synced;
    let noted = known.last_successful_sync.as_ref().map(|time| time.0);
    let is_news = match (synced, noted) {
        (Some(synced), Some(noted)) => synced.duration_since(noted).as_secs() >= SYNC_NOTED,
        (synced, None) => synced.is_some(),
        (None, Some(_)) => false,
    };
    // The API keeps whole seconds.
    let synced = synced.filter(|_| is_news);
    let synced = synced.and_then(|at| Timestamp::from_second(at.as_second()).ok());
    let generation = object.metadata.generation;
    ExternalLoadBalancerStatus {
        conditions: vec![condition(&known.conditions, READY, says, generation, now)],
        ports_in_use: usage.used,
        ports_free: usage.free,
        last_successful_sync: synced.map(Time).or(known.last_successful_sync),
        backends: record.backends.into_iter().collect(),
        pending_deletions: record.deleted.into_iter().collect(),
    }
}
