//! A whole controller, fed with a list of objects of every kind that it watches. What it then
//! writes, says and shows is plain, and it advertises only addresses that somebody has.

use std::{collections::BTreeSet, time::Duration, time::Instant};

use highwire_api::{ClassPolicy, PortKey};
use highwire_controller::{
    config::Policy,
    external::plan::plan,
    facts::Input,
    leading::Role,
    liveness::Now,
    metrics::Metrics,
    reconciler::Reconciler,
    status_page::page,
    status_write::{StatusWrite, WriteResult},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{plain::assert_plain, surfaces};

/// The API server's limit for the note of an Event.
const LONGEST: usize = 1024;
/// More objects than that show nothing new.
const MOST: usize = 64;

pub(super) fn run(input: &[u8]) {
    let Ok(objects) = serde_json::from_slice::<Vec<Value>>(input) else {
        return;
    };
    surfaces::logging_is_plain(|| lead(&objects));
}

/// A controller that knows these objects and leads.
pub(super) fn lead(objects: &[Value]) {
    let Ok(wall) = "2026-01-02T03:04:05Z".parse() else {
        return;
    };
    let mut now = Now {
        instant: Instant::now(),
        wall,
    };
    let mut reconciler = Reconciler::new(ClassPolicy::default(), Policy::default());
    let mut inputs = starts();
    inputs.extend(objects.iter().take(MOST).filter_map(read));
    for input in inputs {
        reconciler.apply(input, now);
    }
    reconciler.begin(Role::Lead);
    for _ in 0..4 {
        now.instant += Duration::from_secs(5);
        reconciler.expire(now);
        reconciler.turn(now);
        while let Some(write) = reconciler.next_write(now) {
            check(&write, &reconciler);
            reconciler.finish(&write, WriteResult::Conflict, now);
        }
        if let Some(snapshot) = reconciler.take_snapshot() {
            let plan = plan(&snapshot, false);
            let mut given = BTreeSet::new();
            for wanted in plan.wanted.values() {
                for port in &wanted.spec.ports {
                    let name = &wanted.spec.external_load_balancer;
                    let is_new = given.insert((name, port.protocol, port.box_port));
                    assert!(is_new, "two Services have {port:?} of {name}");
                }
                if let Some(refused) = &wanted.refused {
                    assert_plain("why a box refuses", &refused.message);
                }
            }
        }
    }
    show(&reconciler, now);
}

/// Every list is complete and empty.
fn starts() -> Vec<Input> {
    let mut inputs = Vec::new();
    for end in [false, true] {
        macro_rules! each {
            ($($kind:ident)*) => {$(
                let event = if end { Event::InitDone } else { Event::Init };
                inputs.push(Input::$kind(Box::new(event)));
            )*};
        }
        each!(Service Node Report Lease Endpoints External LoadBalancer);
    }
    inputs
}

fn read(object: &Value) -> Option<Input> {
    let metadata: ObjectMeta = serde_json::from_value(object["metadata"].clone()).ok()?;
    if !could_be(&metadata) {
        return None;
    }
    Some(match object["kind"].as_str()? {
        "Service" => Input::Service(event(object)?),
        "Node" => Input::Node(event(object)?),
        "LoadBalancerNode" => Input::Report(event(object)?),
        "Lease" => Input::Lease(event(object)?),
        "EndpointSlice" => Input::Endpoints(event(object)?),
        "ExternalLoadBalancer" => Input::External(event(object)?),
        "LoadBalancer" => Input::LoadBalancer(event(object)?),
        _ => return None,
    })
}

fn event<T: DeserializeOwned>(object: &Value) -> Option<Box<Event<T>>> {
    let object = serde_json::from_value(object.clone()).ok()?;
    Some(Box::new(Event::Apply(object)))
}

/// Whether the API server could have let it in: names are those of DNS, and managers can be
/// printed.
pub(super) fn could_be(metadata: &ObjectMeta) -> bool {
    let is_name = |text: &String| {
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        (1..=253).contains(&text.len()) && text.chars().all(part)
    };
    let managers = metadata.managed_fields.iter().flatten();
    let mut managers = managers.filter_map(|it| it.manager.as_ref());
    metadata.name.as_ref().is_some_and(is_name)
        && metadata.namespace.as_ref().is_none_or(is_name)
        && managers.all(|manager| manager.len() <= 128 && !manager.contains(crate::plain::acts))
}

fn check(write: &StatusWrite, reconciler: &Reconciler) {
    let conditions = write.difference.conditions();
    for condition in conditions {
        assert_plain("a condition", &condition.message);
        assert_plain("a reason", &condition.reason);
        assert!(condition.message.len() <= LONGEST, "{}", condition.message);
    }
    for event in &write.news {
        assert_plain("an Event", &event.note);
        assert!(event.note.len() <= LONGEST, "{}", event.note);
    }
    let facts = reconciler.facts();
    let Some(asks) = facts.service(&write.key) else {
        panic!("a write to a Service that is none");
    };
    let external = asks.is_external();
    for (host, ports) in write.difference.ingress.iter().flat_map(|it| it.entries()) {
        assert!(!ports.is_empty(), "{host} without a port");
        let host = host.to_string();
        assert_plain("an address", &host);
        let mut nodes = facts.nodes().filter(|(_, node)| node.opted_in);
        let of_a_node = nodes.any(|(_, node)| {
            let mut all = node.internal.iter().chain(&node.external);
            all.any(|ip| ip.to_string() == host)
        });
        assert!(external || of_a_node, "{host} is no node's");
        assert!(ports.iter().all(|port: &PortKey| port.port.get() > 0));
    }
}

/// What it shows: by metrics, on the page, and to those who ask.
fn show(reconciler: &Reconciler, now: Now) {
    if let Ok(metrics) = Metrics::new() {
        metrics.states(reconciler.service_states(), reconciler.node_states());
        metrics.conflicts(reconciler.refusals());
        surfaces::check_metrics(&metrics.registry);
    }
    let overview = reconciler.overview();
    surfaces::check_explained(&overview);
    for line in &overview.services {
        if let Some(explained) = reconciler.explain(&line.service, now) {
            surfaces::check_explained(&explained);
        }
    }
    surfaces::check_page(page(overview, ""));
}
