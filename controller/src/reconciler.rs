//! The whole controller without its effects: watch events, time and the results of writes
//! go in; writes and Events come out. Only the leader makes any.
//!
//! What an event costs: a renewed Lease, nothing per Service. A report, only the Services
//! whose change it confirms or that it newly refuses or no longer refuses. An EndpointSlice,
//! its Service if that has the policy Local. A node that comes or goes, all Services.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    mem,
    time::{Duration, Instant},
};

use highwire_api::{
    ClassPolicy, Family, Interpretation, Problem, ResourceVersion, ServiceKey,
    names::node_of_agent_lease,
};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::Event;

use crate::{
    config::Policy,
    decision::{
        conditions::{Difference, refused_for},
        decide::{Cluster, decide},
        eligibility::{Node, Nodes, Silence},
    },
    events::{Happened, ServiceEvent, happened},
    facts::{
        Changed, Facts, Input,
        node::Report,
        service::{ServiceFacts, ServiceStatus, needs_endpoints},
    },
    history::{ByChange, History},
    liveness::{AgentLeases, Now},
    overwrites::{Overwrites, Verdict},
    queue::{Part, Queue, Rank},
};

/// How long the conflicts that nodes report are collected.
const COLLECT: Duration = Duration::from_millis(400);

/// A status to be written, if the Service is still as it was when this was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    /// The Service.
    pub key: ServiceKey,
    /// Its UID.
    pub uid: String,
    /// The version of the Service that was decided about.
    pub version: ResourceVersion,
    /// The family whose addresses come first.
    pub primary: Family,
    /// What is to be written.
    pub difference: Difference,
    /// What the status says then.
    pub after: ServiceStatus,
    /// What is to be said when it is carried out.
    pub news: Vec<Happened>,
}

/// How a write ended, as far as its answer says.
#[derive(Debug)]
pub enum WriteResult {
    /// The Service as it is now.
    Written(Box<Service>),
    /// The Service had changed, maybe by this write, if it was sent twice. The watch brings
    /// the change and with it the next try.
    Conflict,
    /// The Service is gone.
    Gone,
    /// Try again later; it may have been carried out all the same.
    Failed,
}

/// How many writes to one version of a Service are kept until a newer version is seen.
const BEGUN: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Reconciler {
    facts: Facts,
    histories: BTreeMap<ServiceKey, History>,
    by_change: ByChange,
    leases: AgentLeases,
    nodes: Nodes,
    policy: Policy,
    touched: Touched,
    leading: Option<Leading>,
}

/// The Services to decide about anew.
#[derive(Debug, Default)]
struct Touched {
    /// Every Service there is.
    all: bool,
    /// These, though they may be gone.
    some: BTreeSet<ServiceKey>,
}

/// What only a leader has. A new one starts from nothing: everything it must know is in the
/// objects.
#[derive(Debug, Default)]
struct Leading {
    queue: Queue,
    overwrites: Overwrites,
    /// The writes of which it was not seen yet whether they were carried out.
    begun: BTreeMap<ServiceKey, VecDeque<StatusWrite>>,
    events: Vec<ServiceEvent>,
    /// How long new Services had to wait for their first address.
    waited: Vec<Duration>,
}

impl Reconciler {
    /// A reconciler that knows nothing yet and does not lead.
    #[must_use]
    pub fn new(class_policy: ClassPolicy, policy: Policy) -> Self {
        Self {
            facts: Facts::new(class_policy),
            policy,
            ..Self::default()
        }
    }

    /// What the watches said.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Takes in an event of a watch.
    pub fn apply(&mut self, input: Input, now: Now) {
        if let Input::Service(event) = &input
            && let Event::Apply(service) | Event::InitApply(service) | Event::Delete(service) =
                event.as_ref()
        {
            self.seen(service, now.instant);
        }
        let was_complete = self.facts.missing().is_empty();
        for change in self.facts.apply(input) {
            self.changed(change, was_complete.then_some(now.instant), now);
        }
    }

    /// Takes in a change; `created` is the time if a Service that is new was just created.
    fn changed(&mut self, change: Changed, created: Option<Instant>, now: Now) {
        match change {
            Changed::Service(key, before) => self.service_changed(key, before.as_deref(), created),
            Changed::Node(name) => self.refresh(&name),
            Changed::Report(name, before) => {
                if self.nodes.contains_key(&name) {
                    let report = self.facts.report(&name).map(AsRef::as_ref);
                    let differing = Report::differing(before.as_deref(), report);
                    self.touched.some.extend(differing);
                    self.refresh(&name);
                }
            }
            Changed::Lease(lease, facts) => {
                let mut nodes = self.leases.apply(&lease, facts.as_ref(), now);
                nodes.extend(node_of_agent_lease(&lease).map(str::to_owned));
                nodes.iter().for_each(|name| self.refresh(name));
            }
            Changed::Endpoints(key) => {
                let asks = self.facts.service(&key).map(|service| &service.asks);
                let valid = self
                    .histories
                    .get(&key)
                    .and_then(|it| it.last_valid.as_ref());
                let spec = match asks {
                    Some(Interpretation::Serve(spec)) => Some(spec),
                    _ => valid,
                };
                if spec.is_some_and(needs_endpoints) {
                    self.touched.some.insert(key);
                }
            }
        }
    }

    fn service_changed(
        &mut self,
        key: ServiceKey,
        before: Option<&ServiceFacts>,
        created: Option<Instant>,
    ) {
        let old = self.histories.remove(&key);
        if let Some(old) = &old {
            self.by_change.remove(old.changed, &key);
        }
        if let Some(now) = self.facts.service(&key) {
            let history = History::after(old.as_ref(), before, now, created);
            if let Interpretation::Serve(_) = now.asks {
                self.by_change.insert(history.changed, &key);
            }
            if let Some(leading) = &mut self.leading
                && before.is_none_or(|before| before.asks != now.asks)
            {
                leading.announce_other_manager(&key, now);
            }
            self.histories.insert(key.clone(), history);
        }
        self.touched.some.insert(key);
    }

    /// Decides anew what concerns all Services of a node.
    fn refresh(&mut self, name: &str) {
        let facts = self.facts.node(name).filter(|facts| facts.opted_in);
        let node = facts.map(|facts| {
            let report = self.facts.report(name);
            let reported = report.and_then(|report| report.observed);
            let version = report.and_then(|report| report.version);
            Node::new(
                facts.clone(),
                report.cloned(),
                self.leases.liveness(name),
                reported.max(self.leases.observed(name, version)),
                &self.policy,
            )
        });
        let (new, old) = (node.as_ref(), self.nodes.get(name));
        self.touched.all |= match old.zip(new) {
            Some((old, new)) => new.differs_for_all(old),
            None => old.is_some() || new.is_some(),
        };
        let observed = |node: Option<&Node>| node.and_then(|node| node.observed);
        let confirmed = self.by_change.between(observed(old), observed(new));
        self.touched.some.extend(confirmed.cloned());
        match node {
            Some(node) => self.nodes.insert(name.to_owned(), node),
            None => self.nodes.remove(name),
        };
    }

    /// Leadership was won or lost.
    pub fn lead(&mut self, leads: bool) {
        if !leads {
            self.leading = None;
        } else if self.leading.is_none() {
            let mut leading = Leading::default();
            for (key, history) in &mut self.histories {
                if let Some(service) = self.facts.service(key) {
                    leading.announce_other_manager(key, service);
                    // The leader before has brought them.
                    let listed = &service.status.listed.ingress;
                    history.waiting_since = history.waiting_since.filter(|_| listed.is_empty());
                }
            }
            self.touched.all = true;
            self.leading = Some(leading);
        }
    }

    /// Lets time pass: silent agents are noticed. All inputs that are there must have been
    /// applied, for a renewal among them prevents an expiry.
    pub fn expire(&mut self, now: Now) {
        let facts = &self.facts;
        let vouched = |name: &str| facts.node(name).is_some_and(|node| node.is_vouched_for());
        let changed = self.leases.expire(vouched, now);
        changed.iter().for_each(|name| self.refresh(name));
    }

    /// The Services that something happened to since this was last called, also those gone.
    pub fn take_touched(&mut self) -> BTreeSet<ServiceKey> {
        let touched = mem::take(&mut self.touched);
        let mut keys = touched.some;
        if touched.all {
            keys.extend(self.histories.keys().cloned());
        }
        keys
    }

    /// Queues what was touched.
    pub fn turn(&mut self, now: Now) {
        // What touches a follower, or one who doesn't know everything yet, need not be
        // remembered: leadership touches everything, and so does the end of a list.
        if !self.facts.missing().is_empty() {
            self.touched.all = true;
            return;
        }
        let touched = self.take_touched();
        let Some(leading) = &mut self.leading else {
            return;
        };
        for key in touched {
            match self.facts.service(&key).zip(self.histories.get(&key)) {
                Some((service, history)) => {
                    // Who has waited long enough to say why waits like all others.
                    let is_new =
                        history.waiting_since.is_some() && service.status.serving.is_none();
                    let rank = if is_new { Rank::First } else { Rank::Refresh };
                    leading.queue.touch(&key, rank, now.instant);
                }
                None => {
                    leading.queue.forget(&key);
                    leading.overwrites.forget(&key);
                    leading.begun.remove(&key);
                }
            }
        }
    }

    /// The next status to be written now. Its end must be reported by [`Self::finish`].
    pub fn next_write(&mut self, now: Now) -> Option<StatusWrite> {
        let cluster = Cluster {
            nodes: &self.nodes,
            endpoints: self.facts.endpoints(),
            policy: &self.policy,
        };
        let leading = self.leading.as_mut()?;
        while let Some(key) = leading.queue.take(now.instant) {
            let known = self.facts.service(&key).zip(self.histories.get(&key));
            let Some((service, history)) = known else {
                leading.queue.forget(&key);
                continue;
            };
            if let Some(write) = leading.consider(&key, service, history, &cluster, now) {
                let (ports, serving) = (&write.difference.ports_error, &write.difference.serving);
                let ports = ports.iter().map(|_| Part::PortsError);
                let parts = ports.chain(serving.iter().map(|_| Part::Serving));
                leading.queue.write(&key, parts, now.instant);
                let begun = leading.begun.entry(key).or_default();
                begun.truncate(BEGUN - 1);
                begun.push_front(write.clone());
                return Some(write);
            }
        }
        None
    }

    /// A write ended.
    pub fn finish(&mut self, write: &StatusWrite, result: WriteResult, now: Now) {
        if let WriteResult::Written(service) = &result {
            self.seen(service, now.instant);
        }
        if let Some(leading) = &mut self.leading {
            match &result {
                WriteResult::Failed => leading.queue.failed(&write.key, now.instant),
                _ => leading.queue.done(&write.key, now.instant),
            }
        }
        if let WriteResult::Written(service) = result {
            for change in self.facts.answered(*service) {
                self.changed(change, None, now);
            }
        }
    }

    /// The Service is like this: by the watch, or by the answer to a write, which may be
    /// lost. Of the writes to the version before, the one that it shows was carried out, and
    /// no other can be any more.
    fn seen(&mut self, service: &Service, now: Instant) {
        let key = ServiceKey::of(service);
        let Some(leading) = &mut self.leading else {
            return;
        };
        let version = ResourceVersion::of(&service.metadata);
        let Entry::Occupied(begun) = leading.begun.entry(key) else {
            return;
        };
        if begun
            .get()
            .iter()
            .any(|write| Some(write.version) >= version)
        {
            return;
        }
        let (key, mut begun) = begun.remove_entry();
        let status = ServiceStatus::of(service);
        begun.retain(|write| Some(&write.uid) == service.metadata.uid.as_ref());
        let write = begun
            .into_iter()
            .find(|write| write.after.says_same(&status));
        let known = self.facts.service(&key).zip(self.histories.get_mut(&key));
        let Some((write, (facts, history))) = write.zip(known) else {
            return;
        };
        if let Some(ingress) = &write.difference.ingress {
            history.edited = false;
            leading
                .overwrites
                .wrote(&key, facts, history, status.listed);
            let since = history.waiting_since.take_if(|_| !ingress.is_empty());
            let waited = since.map(|since| now.saturating_duration_since(since));
            leading.waited.extend(waited);
        }
        let events = write.news.into_iter().enumerate();
        let events = events.map(|(index, happened)| ServiceEvent {
            key: key.clone(),
            uid: write.uid.clone(),
            happened,
            // The same in every process that saw it carried out.
            id: format!("{}-{index}", write.version),
        });
        leading.events.extend(events);
    }

    /// The Events to be sent now.
    pub fn take_events(&mut self) -> Vec<ServiceEvent> {
        let leading = self.leading.as_mut();
        leading
            .map(|leading| mem::take(&mut leading.events))
            .unwrap_or_default()
    }

    /// How long new Services had to wait for the first addresses that came since the last
    /// call.
    pub fn take_waited(&mut self) -> Vec<Duration> {
        let leading = self.leading.as_mut();
        leading
            .map(|leading| mem::take(&mut leading.waited))
            .unwrap_or_default()
    }

    /// When there is something to do next. `writable` is whether a write could begin.
    #[must_use]
    pub fn next_turn(&self, writable: bool) -> Option<Instant> {
        let leading = self.leading.as_ref().filter(|_| writable);
        let write = leading.and_then(|leading| leading.queue.next());
        self.leases.next().into_iter().chain(write).min()
    }

    /// The states of all Services, for metrics.
    pub fn service_states(&self) -> impl Iterator<Item = &'static str> {
        self.facts.services().map(ServiceFacts::state)
    }

    /// The states of all nodes, for metrics.
    pub fn node_states(&self) -> impl Iterator<Item = &'static str> {
        let others = self.facts.node_count().saturating_sub(self.nodes.len());
        let opted_in = self.nodes.values().map(Node::state);
        opted_in.chain(std::iter::repeat_n("not_opted_in", others))
    }

    /// Why Services are refused a port, for metrics: one reason per Service.
    pub fn refusals(&self) -> impl Iterator<Item = &'static str> {
        self.facts
            .services()
            .filter_map(|service| refused_for(&service.status))
    }
}

impl Leading {
    /// What is to be written now; if nothing, the queue knows when to decide again.
    fn consider(
        &mut self,
        key: &ServiceKey,
        service: &ServiceFacts,
        history: &History,
        cluster: &Cluster<'_>,
        now: Now,
    ) -> Option<StatusWrite> {
        let mut due = |part, differs, delay| self.queue.due(key, part, differs, delay, now.instant);
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now.instant);
        let mut decision = decide(key, service, history, cluster, Silence::ProvesNothing);
        let mut hold = due(Part::Empty, decision.is_held, cluster.policy.empty_hold);
        if is_due(hold) {
            decision = decide(key, service, history, cluster, Silence::IsAbsence);
            hold = None;
        }
        let mut difference = Difference::between(service, &decision, now.wall);
        let ports_at = due(Part::PortsError, difference.ports_error.is_some(), COLLECT);
        let delay = decision.serving.as_ref().map_or(COLLECT, |serving| {
            serving.delay(service.status.serving.is_none())
        });
        let serving_at = due(Part::Serving, difference.serving.is_some(), delay);
        let verdict = match difference.ingress {
            Some(_) => self.overwrites.verdict(key, service, history, now.instant),
            None => Verdict::Write,
        };
        let is_ours = verdict == Verdict::Write;
        if let Verdict::GiveUp(problem) = verdict {
            self.event(key, service, &problem, service.version.to_string());
        }
        if !is_ours || !(difference.ingress.is_some() || is_due(ports_at) || is_due(serving_at)) {
            let next = [hold, ports_at, serving_at].into_iter().flatten().min();
            self.queue.wait(key, next.filter(|_| is_ours));
            return None;
        }
        // What passes within a moment is not written; everything else goes along.
        if !is_due(ports_at) && difference.begins_ports_error(&service.status) {
            difference.ports_error = None;
        }
        if !is_due(serving_at) && difference.begins_not_serving(&service.status) {
            difference.serving = None;
        }
        Some(StatusWrite {
            key: key.clone(),
            uid: service.uid.clone(),
            version: service.version,
            primary: service.primary,
            after: difference.applied_to(&service.status),
            news: happened(&service.status, &difference, &decision, history.edited),
            difference,
        })
    }

    /// Says that another program wrote the addresses of a Service. Nothing is written there
    /// that would remember this, so it is one Event per Service, also after a change of leader.
    fn announce_other_manager(&mut self, key: &ServiceKey, service: &ServiceFacts) {
        if let Interpretation::ManagedElsewhere(manager) = &service.asks {
            let manager = manager.clone();
            let problem = Problem::ManagedElsewhere { manager };
            self.event(key, service, &problem, service.uid.clone());
        }
    }

    fn event(&mut self, key: &ServiceKey, service: &ServiceFacts, problem: &Problem, id: String) {
        self.events.push(ServiceEvent {
            key: key.clone(),
            uid: service.uid.clone(),
            happened: Happened::problem(problem),
            id,
        });
    }
}
