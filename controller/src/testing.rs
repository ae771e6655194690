//! What tests need: objects as the API server would send them, and a [`World`] with
//! a small API server in it.
//!
//! Addresses: nodes 192.0.2.0/24 and 2001:db8:1::/64, their ExternalIPs 203.0.113.0/24
//! and 2001:db8:2::/64, ClusterIPs 10.96.0.0/16 and fd00:96::/112.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use highwire_api::{
    ClassPolicy, ResourceVersion, ServiceKey,
    names::{CONTROLLER_LEASE, FIELD_MANAGER},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};

use crate::{
    condition::{PORTS_ERROR, SERVING},
    desired::Advertising,
    engine::{Engine, StatusWrite, WriteResult},
    index::{
        Input,
        endpoints::{SliceKey, SliceView},
        listing::Fed,
        node::{AgentReport, ExcludeLabel, LeaseView, NodeFacts},
        service::ServiceView,
    },
    liveness::Now,
    notice_text::Announcement,
};

/// The key of a Service in the namespace of all tests.
pub(crate) fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        name: name.into(),
    }
}

/// A Service for port 80/TCP.
pub(crate) fn service(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-01-02T03:04:05Z",
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.10"],
            "ports": [{"port": 80}],
        },
    })
}

/// What the index reads of a Service.
pub(crate) fn view(service: &Value) -> Box<ServiceView> {
    let service: Service = serde_json::from_value(service.clone()).unwrap();
    Box::new(ServiceView::of(&service, ClassPolicy::DefaultAndOurs))
}

/// A Ready, opted-in Node `nI` with InternalIP 192.0.2.I.
pub(crate) fn node(number: u8) -> Value {
    json!({
        "metadata": {"name": format!("n{number}"), "labels": {"highwire.dev/enabled": "true"}},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": format!("192.0.2.{number}")},
                {"type": "InternalIP", "address": format!("2001:db8:1::{number}")},
                {"type": "Hostname", "address": format!("n{number}")},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// What the index reads of a Node.
pub(crate) fn facts(node: &Value) -> NodeFacts {
    NodeFacts::of(
        &serde_json::from_value(node.clone()).unwrap(),
        ExcludeLabel::Honoured,
    )
}

/// What the index reads of a Service's EndpointSlice with a ready endpoint on each of
/// these nodes.
pub(crate) fn slice(service: &str, nodes: &[u8]) -> (SliceKey, SliceView) {
    let ends = nodes.iter().map(|number| {
        json!({"addresses": [format!("10.244.{number}.2")], "nodeName": format!("n{number}")})
    });
    let object: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": format!("{service}-abcde"), "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": ends.collect::<Vec<_>>(),
    }))
    .unwrap();
    (SliceKey::of(&object), SliceView::of(&object))
}

/// A ready agent's report.
pub(crate) fn report(observed: u64) -> Value {
    json!({
        "metadata": {"name": "n"},
        "spec": {},
        "status": {
            "observedResourceVersion": observed.to_string(),
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Programmed", "message": "",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            }],
        },
    })
}

/// What the index reads of a LoadBalancerNode.
pub(crate) fn agent_report(report: &Value) -> AgentReport {
    AgentReport::of(&serde_json::from_value(report.clone()).unwrap())
}

/// An agent's Lease, renewed at `now`.
pub(crate) fn lease(now: Now, observed: Option<u64>) -> LeaseView {
    LeaseView {
        renewed: Some(now.wall),
        duration: Duration::from_secs(12),
        observed: observed.map(ResourceVersion),
        held: true,
    }
}

/// An engine, a clock that stands until it is moved, and an API server that holds
/// Services and checks versions.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) now: Now,
    /// Every write the API server accepted.
    pub(crate) writes: Vec<StatusWrite>,
    pub(crate) announcements: Vec<Announcement>,
    /// How many writes it refused because the Service had changed.
    pub(crate) conflicts: u32,
    services: BTreeMap<ServiceKey, Value>,
    version: u64,
    /// Whether objects come as part of a list.
    listing: bool,
    /// The nodes whose agents renew their Leases as time passes.
    renewing: Vec<u8>,
    /// Whether the API server is away, so that nobody renews a Lease.
    away: bool,
    last_renewal: Instant,
}

impl World {
    /// A leading controller whose watches have listed nothing.
    pub(crate) fn new() -> Self {
        Self::with(Advertising::default())
    }

    /// The same with these flags.
    pub(crate) fn with(advertising: Advertising) -> Self {
        let now = Now {
            instant: Instant::now(),
            wall: "2026-01-02T03:04:05Z".parse().unwrap(),
        };
        let mut world = Self {
            engine: Engine::new(advertising),
            now,
            writes: Vec::new(),
            announcements: Vec::new(),
            conflicts: 0,
            services: BTreeMap::new(),
            version: 100,
            listing: false,
            renewing: Vec::new(),
            away: false,
            last_renewal: now.instant,
        };
        world.list_nothing();
        world.engine.lead(true);
        world
    }

    fn list_nothing(&mut self) {
        for fed in [Fed::Restart, Fed::Complete] {
            self.feed(Input::Service(fed));
        }
        self.list_endpoints([]);
        self.list_nodes(|_| {});
    }

    /// The list of all EndpointSlices: of these Services, with a ready endpoint on each
    /// of these nodes.
    pub(crate) fn list_endpoints<'a>(
        &mut self,
        ready: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) {
        self.feed(Input::Slice(Fed::Restart));
        for (service, nodes) in ready {
            let (key, view) = slice(service, nodes);
            self.feed(Input::Slice(Fed::Listed(key, view)));
        }
        self.feed(Input::Slice(Fed::Complete));
    }

    /// The Service has a ready endpoint on each of these nodes.
    pub(crate) fn endpoints(&mut self, service: &str, nodes: &[u8]) {
        let (key, view) = slice(service, nodes);
        self.feed(Input::Slice(Fed::Put(key, view)));
    }

    /// The lists of everything that concerns nodes, with what `fill` tells.
    pub(crate) fn list_nodes(&mut self, fill: impl FnOnce(&mut Self)) {
        self.feed(Input::Node(Fed::Restart));
        self.feed(Input::Report(Fed::Restart));
        self.feed(Input::Lease(Fed::Restart));
        self.listing = true;
        fill(self);
        self.listing = false;
        self.feed(Input::Node(Fed::Complete));
        self.feed(Input::Report(Fed::Complete));
        self.feed(Input::Lease(Fed::Complete));
    }

    /// An event with an object.
    pub(crate) fn fed<V>(&self, name: String, value: V) -> Fed<String, V> {
        if self.listing {
            Fed::Listed(name, value)
        } else {
            Fed::Put(name, value)
        }
    }

    /// Gives the engine an event.
    pub(crate) fn feed(&mut self, input: Input) {
        self.engine.feed(input, self.now);
    }

    /// The version of the newest object.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Creates or replaces a Service.
    pub(crate) fn put(&mut self, service: Value) {
        let event = self.store(service);
        self.feed(event);
    }

    /// Changes a Service and keeps back the event that tells.
    pub(crate) fn edit_unseen(&mut self, name: &str, change: impl FnOnce(&mut Value)) -> Input {
        let mut service = self.services[&key(name)].clone();
        change(&mut service);
        self.store(service)
    }

    fn store(&mut self, mut service: Value) -> Input {
        self.version += 1;
        service["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = service["metadata"]["name"].as_str().unwrap().to_owned();
        self.services.insert(key(&name), service.clone());
        Input::Service(Fed::Put(key(&name), view(&service)))
    }

    /// Changes a Service.
    pub(crate) fn edit(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let event = self.edit_unseen(name, change);
        self.feed(event);
    }

    /// A node that is live and has observed everything so far; its agent renews.
    pub(crate) fn live(&mut self, number: u8) {
        self.node(number, |_| {});
        self.report(number, self.version, |_| {});
        self.lease(number);
        self.renewing.push(number);
    }

    /// A Node.
    pub(crate) fn node(&mut self, number: u8, change: impl FnOnce(&mut Value)) {
        let mut node = node(number);
        change(&mut node);
        self.feed(Input::Node(self.fed(format!("n{number}"), facts(&node))));
    }

    /// A node's report.
    pub(crate) fn report(&mut self, number: u8, observed: u64, change: impl FnOnce(&mut Value)) {
        let mut report = report(observed);
        change(&mut report);
        self.feed(Input::Report(
            self.fed(format!("n{number}"), agent_report(&report)),
        ));
    }

    /// All these nodes report everything observed.
    pub(crate) fn all_report(&mut self, numbers: impl IntoIterator<Item = u8>) {
        numbers
            .into_iter()
            .for_each(|number| self.report(number, self.version, |_| {}));
    }

    /// A node's Lease, renewed now.
    pub(crate) fn lease(&mut self, number: u8) {
        let lease = lease(self.now, None);
        self.feed(Input::Lease(self.fed(format!("agent-n{number}"), lease)));
    }

    /// The node's agent dies, or hangs.
    pub(crate) fn kill(&mut self, number: u8) {
        self.renewing.retain(|known| *known != number);
    }

    /// Nobody renews any more: the API server is away.
    pub(crate) fn silence(&mut self) -> Vec<u8> {
        self.away = true;
        std::mem::take(&mut self.renewing)
    }

    /// They renew again from now on.
    pub(crate) fn resume(&mut self, numbers: Vec<u8>) {
        self.renewing = numbers;
        self.away = false;
        self.last_renewal = self.now.instant;
    }

    /// Lets time pass in small steps: agents renew, the engine acts.
    pub(crate) fn pass(&mut self, time: Duration) {
        const STEP: Duration = Duration::from_millis(10);
        let end = self.now.instant + time;
        while self.now.instant < end {
            self.now = Now {
                instant: self.now.instant + STEP,
                wall: self.now.wall + STEP,
            };
            if self.now.instant >= self.last_renewal + Duration::from_secs(4) {
                self.last_renewal = self.now.instant;
                self.renewing
                    .clone()
                    .into_iter()
                    .for_each(|number| self.lease(number));
                if !self.away {
                    // The leader's own, which is nothing but a pulse.
                    let own = Fed::Put(CONTROLLER_LEASE.to_owned(), lease(self.now, None));
                    self.feed(Input::Lease(own));
                }
            }
            if self
                .engine
                .next_turn(true)
                .is_some_and(|at| at <= self.now.instant)
            {
                self.act();
            } else {
                self.engine.turn(self.now);
            }
        }
    }

    fn act(&mut self) {
        self.engine.turn(self.now);
        while let Some(write) = self.engine.next_write(self.now) {
            let result = self.serve(&write);
            self.engine.finish(&write, result, self.now);
            self.engine.turn(self.now);
        }
        self.announcements
            .extend(self.engine.announcements(self.now));
    }

    /// The API server's part in a write.
    fn serve(&mut self, write: &StatusWrite) -> WriteResult {
        let Some(service) = self.services.get_mut(&write.key) else {
            return WriteResult::Gone;
        };
        if service["metadata"]["resourceVersion"] != json!(write.version.to_string()) {
            self.conflicts += 1;
            return WriteResult::Conflict;
        }
        self.version += 1;
        service["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if write.ingress.is_some() || service["metadata"]["managedFields"].is_null() {
            service["metadata"]["managedFields"] = managed_by(FIELD_MANAGER);
        }
        if let Some(ingress) = &write.ingress {
            service["status"]["loadBalancer"]["ingress"] = json!(ingress.to_api(write.primary));
        }
        for condition in &write.conditions {
            merge_by_type(&mut service["status"]["conditions"], json!(condition));
        }
        self.writes.push(write.clone());
        WriteResult::Written(view(service))
    }

    /// The addresses in a Service's status with their ports, as `192.0.2.1:80`.
    pub(crate) fn advertised(&self, name: &str) -> Vec<String> {
        let entries = &self.services[&key(name)]["status"]["loadBalancer"]["ingress"];
        let ports = |entry: &Value| {
            let ports = entry["ports"].as_array().unwrap().iter();
            ports
                .map(|port| port["port"].to_string())
                .collect::<Vec<_>>()
                .join(",")
        };
        let text = |entry: &Value| format!("{}:{}", entry["ip"].as_str().unwrap(), ports(entry));
        entries.as_array().into_iter().flatten().map(text).collect()
    }

    /// The condition `LoadBalancerPortsError` of a Service as `True HostPort: message`.
    pub(crate) fn condition(&self, name: &str) -> Option<String> {
        self.stated(name, PORTS_ERROR)
    }

    /// The condition `highwire.dev/Serving` of a Service in the same form.
    pub(crate) fn serving(&self, name: &str) -> Option<String> {
        self.stated(name, SERVING)
    }

    fn stated(&self, name: &str, type_: &str) -> Option<String> {
        let conditions = &self.services[&key(name)]["status"]["conditions"];
        let mut conditions = conditions.as_array().into_iter().flatten();
        let found = conditions.find(|found| found["type"] == type_)?;
        let text = |field: &str| found[field].as_str().unwrap().to_owned();
        Some(format!(
            "{} {}: {}",
            text("status"),
            text("reason"),
            text("message")
        ))
    }

    /// The Services as the API server has them.
    pub(crate) fn services(&self) -> &BTreeMap<ServiceKey, Value> {
        &self.services
    }

    /// Deletes a Service.
    pub(crate) fn delete(&mut self, name: &str) {
        self.version += 1;
        self.services.remove(&key(name));
        self.feed(Input::Service(Fed::Drop(key(name))));
    }

    /// A node's agent renews its Lease now and from now on.
    pub(crate) fn renews(&mut self, number: u8) {
        self.lease(number);
        if !self.renewing.contains(&number) {
            self.renewing.push(number);
        }
    }

    /// Another controller takes over from the same objects; it has seen nothing before.
    pub(crate) fn restart(&mut self) {
        let services = self.services.clone();
        self.engine = Engine::default();
        self.list_endpoints([]);
        self.feed(Input::Service(Fed::Restart));
        for (key, service) in &services {
            self.feed(Input::Service(Fed::Listed(key.clone(), view(service))));
        }
        self.feed(Input::Service(Fed::Complete));
        self.engine.lead(true);
    }

    /// The reasons of the Events so far.
    pub(crate) fn reasons(&self) -> Vec<&'static str> {
        self.announcements
            .iter()
            .map(|announcement| announcement.reason)
            .collect()
    }
}

/// What a strategic merge patch does to a list of conditions.
fn merge_by_type(conditions: &mut Value, new: Value) {
    if conditions.is_null() {
        *conditions = json!([]);
    }
    let conditions = conditions.as_array_mut().unwrap();
    match conditions.iter_mut().find(|old| old["type"] == new["type"]) {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

/// `managedFields` of a Service whose ingress `manager` wrote.
pub(crate) fn managed_by(manager: &str) -> Value {
    json!([{
        "manager": manager, "operation": "Update", "subresource": "status",
        "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:status": {
            "f:loadBalancer": {"f:ingress": {}},
            "f:conditions": {"k:{\"type\":\"LoadBalancerPortsError\"}": {}},
        }},
    }])
}
