//! A [`World`]: the reconciler with a small API server around it.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    time::{Duration, Instant},
};

use highwire_api::{
    ClassPolicy, ServiceKey,
    names::{CONTROLLER_LEASE, FIELD_MANAGER, agent_lease},
};
use highwire_controller::{
    config::Policy,
    events::ServiceEvent,
    facts::{
        Input,
        service::{PORTS_ERROR, SERVING},
    },
    leading::Role,
    liveness::Now,
    reconciler::Reconciler,
    status_write::{StatusWrite, WriteResult},
};
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::loss::{Fate, Loss};
use crate::objects::{key, lease, managed_by, node, object, report, slice};

/// What comes later.
enum Later {
    Seen(Input),
    GivenUp(Box<StatusWrite>, WriteResult),
}

/// A reconciler, a clock that stands until it is moved, and an API server that holds
/// Services and checks versions.
pub struct World {
    pub reconciler: Reconciler,
    pub now: Now,
    /// Every write the API server accepted.
    pub writes: Vec<StatusWrite>,
    pub events: Vec<ServiceEvent>,
    /// How many writes it refused because the Service had changed.
    pub conflicts: u32,
    /// What becomes of the next writes; those after them are answered.
    pub losses: VecDeque<Loss>,
    later: Vec<(Instant, Later)>,
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
    pub fn new() -> Self {
        Self::with(Policy::default())
    }

    /// The same with these flags.
    pub fn with(policy: Policy) -> Self {
        let now = Now {
            instant: Instant::now(),
            wall: "2026-01-02T03:04:05Z".parse().unwrap(),
        };
        let mut world = Self {
            reconciler: Reconciler::new(ClassPolicy::DefaultAndOurs, policy),
            now,
            writes: Vec::new(),
            events: Vec::new(),
            conflicts: 0,
            losses: VecDeque::new(),
            later: Vec::new(),
            services: BTreeMap::new(),
            version: 100,
            listing: false,
            renewing: Vec::new(),
            away: false,
            last_renewal: now.instant,
        };
        for event in [Event::Init, Event::InitDone] {
            world.feed(Input::Service(Box::new(event)));
        }
        world.list_endpoints([]);
        world.list_nodes(|_| {});
        world.reconciler.begin(Role::Lead);
        world
    }

    /// The list of all EndpointSlices: of these Services, with a ready endpoint on each
    /// of these nodes.
    pub fn list_endpoints<'a>(&mut self, ready: impl IntoIterator<Item = (&'a str, &'a [u8])>) {
        self.feed(Input::Endpoints(Box::new(Event::Init)));
        for (service, nodes) in ready {
            let listed = Event::InitApply(object(&slice(service, nodes)));
            self.feed(Input::Endpoints(Box::new(listed)));
        }
        self.feed(Input::Endpoints(Box::new(Event::InitDone)));
    }

    /// The Service has a ready endpoint on each of these nodes.
    pub fn endpoints(&mut self, service: &str, nodes: &[u8]) {
        let slice = Event::Apply(object(&slice(service, nodes)));
        self.feed(Input::Endpoints(Box::new(slice)));
    }

    /// The lists of everything that concerns nodes, with what `fill` feeds.
    pub fn list_nodes(&mut self, fill: impl FnOnce(&mut Self)) {
        self.feed(Input::Node(Box::new(Event::Init)));
        self.feed(Input::Report(Box::new(Event::Init)));
        self.feed(Input::Lease(Box::new(Event::Init)));
        self.listing = true;
        fill(self);
        self.listing = false;
        self.feed(Input::Node(Box::new(Event::InitDone)));
        self.feed(Input::Report(Box::new(Event::InitDone)));
        self.feed(Input::Lease(Box::new(Event::InitDone)));
    }

    /// An event with an object.
    fn event<T: DeserializeOwned>(&self, value: &Value) -> Box<Event<T>> {
        Box::new(if self.listing {
            Event::InitApply(object(value))
        } else {
            Event::Apply(object(value))
        })
    }

    /// Gives the reconciler an event.
    pub fn feed(&mut self, input: Input) {
        self.reconciler.apply(input, self.now);
    }

    /// The version of the newest object.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Creates or replaces a Service.
    pub fn put(&mut self, service: Value) {
        let event = self.store(service);
        self.feed(event);
    }

    /// Creates or replaces a Service that has a version already.
    pub fn put_as_is(&mut self, service: &Value) {
        let name = service["metadata"]["name"].as_str().unwrap();
        self.services.insert(key(name), service.clone());
        self.feed(Input::Service(self.event(service)));
    }

    /// Changes a Service and keeps back the event about it.
    pub fn edit_unseen(&mut self, name: &str, change: impl FnOnce(&mut Value)) -> Input {
        let mut service = self.services[&key(name)].clone();
        change(&mut service);
        self.store(service)
    }

    fn store(&mut self, mut service: Value) -> Input {
        self.version += 1;
        service["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = service["metadata"]["name"].as_str().unwrap().to_owned();
        self.services.insert(key(&name), service.clone());
        // A watch brings the versions in order.
        for (_, later) in self
            .later
            .extract_if(.., |(_, it)| matches!(it, Later::Seen(_)))
            .collect::<Vec<_>>()
        {
            self.come(later);
        }
        Input::Service(Box::new(Event::Apply(object(&service))))
    }

    fn come(&mut self, later: Later) {
        match later {
            Later::Seen(input) => self.feed(input),
            Later::GivenUp(write, result) => {
                self.reconciler.finish(&write, result, self.now);
            }
        }
    }

    /// Changes a Service.
    pub fn edit(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let event = self.edit_unseen(name, change);
        self.feed(event);
    }

    /// Deletes a Service.
    pub fn delete(&mut self, name: &str) {
        self.version += 1;
        if let Some(service) = self.services.remove(&key(name)) {
            self.feed(Input::Service(Box::new(Event::Delete(object(&service)))));
        }
    }

    /// A node that is live and has observed everything so far; its agent renews.
    pub fn live(&mut self, number: u8) {
        self.node(number, |_| {});
        self.report(number, self.version, |_| {});
        self.lease(number);
        self.renewing.push(number);
    }

    /// A Node.
    pub fn node(&mut self, number: u8, change: impl FnOnce(&mut Value)) {
        let mut node = node(number);
        change(&mut node);
        self.node_object(&node);
    }

    /// The Node is like this.
    pub fn node_object(&mut self, node: &Value) {
        self.feed(Input::Node(self.event(node)));
    }

    /// The Node is deleted.
    pub fn delete_node(&mut self, number: u8) {
        let deleted = Event::Delete(object(&node(number)));
        self.feed(Input::Node(Box::new(deleted)));
    }

    /// A node's report.
    pub fn report(&mut self, number: u8, observed: u64, change: impl FnOnce(&mut Value)) {
        let mut report = report(number, observed);
        change(&mut report);
        self.report_object(&report);
    }

    /// The report is like this.
    pub fn report_object(&mut self, report: &Value) {
        self.feed(Input::Report(self.event(report)));
    }

    /// The report is deleted.
    pub fn delete_report(&mut self, number: u8) {
        let deleted = Event::Delete(object(&report(number, 0)));
        self.feed(Input::Report(Box::new(deleted)));
    }

    /// All these nodes report everything observed.
    pub fn all_report(&mut self, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            self.report(number, self.version, |_| {});
        }
    }

    /// A node's Lease, renewed now.
    pub fn lease(&mut self, number: u8) {
        self.lease_of(number, Duration::ZERO, None);
    }

    /// A node's Lease, renewed some time ago.
    pub fn lease_of(&mut self, number: u8, ago: Duration, observed: Option<u64>) {
        let name = agent_lease(&format!("n{number}"));
        let lease = lease(&name, self.now.wall - ago, observed);
        self.feed(Input::Lease(self.event(&lease)));
    }

    /// A Lease that says what was observed and which version of the report goes with that.
    pub fn lease_with_report(&mut self, number: u8, observed: u64, report: &str) {
        let name = agent_lease(&format!("n{number}"));
        let mut lease = lease(&name, self.now.wall, Some(observed));
        lease["metadata"]["annotations"]["highwire.dev/report-version"] = json!(report);
        self.feed(Input::Lease(self.event(&lease)));
    }

    /// The Lease is deleted.
    pub fn delete_lease(&mut self, number: u8) {
        let lease = lease(&agent_lease(&format!("n{number}")), self.now.wall, None);
        self.feed(Input::Lease(Box::new(Event::Delete(object(&lease)))));
    }

    /// A node's agent renews its Lease now and from now on.
    pub fn renews(&mut self, number: u8) {
        self.lease(number);
        if !self.renewing.contains(&number) {
            self.renewing.push(number);
        }
    }

    /// The node's agent dies, or hangs.
    pub fn kill(&mut self, number: u8) {
        self.renewing.retain(|known| *known != number);
    }

    /// Nobody renews any more: the API server is away.
    pub fn silence(&mut self) -> Vec<u8> {
        self.away = true;
        mem::take(&mut self.renewing)
    }

    /// They renew again from now on.
    pub fn resume(&mut self, numbers: Vec<u8>) {
        self.renewing = numbers;
        self.away = false;
        self.last_renewal = self.now.instant;
    }

    /// Lets time pass in small steps: agents renew, the reconciler acts.
    pub fn pass(&mut self, time: Duration) {
        const STEP: Duration = Duration::from_millis(10);
        let end = self.now.instant + time;
        while self.now.instant < end {
            self.now = Now {
                instant: self.now.instant + STEP,
                wall: self.now.wall + STEP,
            };
            if self.now.instant >= self.last_renewal + Duration::from_secs(4) {
                self.last_renewal = self.now.instant;
                for number in self.renewing.clone() {
                    self.lease(number);
                }
                if !self.away {
                    // The leader's own, which only shows that renewals are seen.
                    let own = lease(CONTROLLER_LEASE, self.now.wall, None);
                    self.feed(Input::Lease(self.event(&own)));
                }
            }
            self.act();
        }
    }

    fn act(&mut self) {
        let now = self.now.instant;
        for (_, later) in self
            .later
            .extract_if(.., |(at, _)| *at <= now)
            .collect::<Vec<_>>()
        {
            self.come(later);
        }
        self.reconciler.expire(self.now);
        self.reconciler.turn(self.now);
        while let Some(write) = self.reconciler.next_write(self.now) {
            let loss = self.losses.pop_front().unwrap_or_default();
            let result = match loss.fate {
                Fate::Lost => WriteResult::Failed,
                _ => self.serve(&write),
            };
            let result = match (loss.fate, result) {
                (Fate::NoAnswer, _) => WriteResult::Failed,
                (Fate::SentAgain, _) => WriteResult::Conflict,
                (_, result) => result,
            };
            if loss.fate == Fate::Answered {
                self.reconciler.finish(&write, result, self.now);
            } else {
                let carried_out = self.writes.last().is_some_and(|last| *last == write);
                if carried_out {
                    let service = object(&self.services[&write.key]);
                    let event = Input::Service(Box::new(Event::Apply(service)));
                    self.later.push((now + loss.seen, Later::Seen(event)));
                }
                let given_up = Later::GivenUp(Box::new(write), result);
                self.later.push((now + loss.given_up, given_up));
            }
            self.reconciler.turn(self.now);
        }
        self.events.extend(self.reconciler.take_news().events);
    }

    /// The API server's part in a write.
    fn serve(&mut self, write: &StatusWrite) -> WriteResult {
        let Some(service) = self.services.get_mut(&write.key) else {
            return WriteResult::Gone;
        };
        let patch = write.patch();
        if service["metadata"]["resourceVersion"] != patch["metadata"]["resourceVersion"] {
            self.conflicts += 1;
            return WriteResult::Conflict;
        }
        self.version += 1;
        service["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let ingress = patch["status"].get("loadBalancer");
        if ingress.is_some() || service["metadata"]["managedFields"].is_null() {
            service["metadata"]["managedFields"] = managed_by(FIELD_MANAGER);
        }
        if let Some(load_balancer) = ingress {
            service["status"]["loadBalancer"] = load_balancer.clone();
        }
        for condition in patch["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
        {
            merge_by_type(&mut service["status"]["conditions"], condition);
        }
        self.writes.push(write.clone());
        WriteResult::Written(Box::new(object(service)))
    }

    /// The addresses in a Service's status with their ports, as `192.0.2.1:80`.
    pub fn advertised(&self, name: &str) -> Vec<String> {
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
    pub fn condition(&self, name: &str) -> Option<String> {
        self.stated(name, PORTS_ERROR)
    }

    /// The condition `highwire.dev/Serving` of a Service in the same form.
    pub fn serving(&self, name: &str) -> Option<String> {
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
    pub fn services(&self) -> &BTreeMap<ServiceKey, Value> {
        &self.services
    }

    /// Another controller takes over from the same objects; it has seen nothing before.
    pub fn restart(&mut self) {
        self.reconciler = Reconciler::default();
        self.list_endpoints([]);
        self.feed(Input::Service(Box::new(Event::Init)));
        for service in self.services.clone().values() {
            let listed = Event::InitApply(object(service));
            self.feed(Input::Service(Box::new(listed)));
        }
        self.feed(Input::Service(Box::new(Event::InitDone)));
        self.reconciler.begin(Role::Lead);
    }

    /// The controller loses its lease for that time, and then leads again.
    pub fn lose_the_lease(&mut self, time: Duration) {
        self.reconciler.begin(Role::Follow);
        self.pass(time);
        self.reconciler.begin(Role::Lead);
    }

    /// The reasons of the Events so far.
    pub fn reasons(&self) -> Vec<&'static str> {
        let events = self.events.iter();
        events.map(|event| event.happened.reason).collect()
    }

    /// The notes of the Events of that reason.
    pub fn notes(&self, reason: &str) -> Vec<&str> {
        let events = self.events.iter().map(|event| &event.happened);
        let events = events.filter(|happened| happened.reason == reason);
        events.map(|happened| happened.note.as_str()).collect()
    }
}

/// What a strategic merge patch does to a list of conditions.
fn merge_by_type(conditions: &mut Value, new: &Value) {
    if conditions.is_null() {
        *conditions = json!([]);
    }
    let conditions = conditions.as_array_mut().unwrap();
    conditions.retain(|old| old["type"] != new["type"]);
    if new["$patch"] != "delete" {
        conditions.push(new.clone());
    }
}
