//! The whole controller without its effects: watch events, time and the results of writes
//! go in; writes and Events come out. Only the leader makes any.
//!
//! What an event costs: a renewed Lease, nothing per Service. A report, only the Services
//! whose change it confirms or that it newly refuses or no longer refuses. An EndpointSlice,
//! its Service if that has the policy Local. A node that comes or goes, all Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Instant,
};

use highwire_api::{
    ClassPolicy, ServiceKey,
    names::{external_of_edge_lease, node_of_agent_lease},
    service::Entrance,
};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::Event;

use crate::{
    config::Policy,
    decision::{
        conditions::{Difference, refused_for},
        decide::Cluster,
        eligibility::{Node, Nodes},
    },
    events::ServiceEvent,
    explain::{self, Overview, ServiceExplanation},
    external::snapshot::{NodesNow, Snapshot},
    facts::{
        Changed, Facts, Input,
        node::Report,
        service::{ServiceFacts, needs_endpoints},
    },
    history::History,
    leading::{Leading, News, Role},
    liveness::{AgentLeases, Now},
    queue::{Depth, Part, Rank},
    status_write::{Begun, StatusWrite, WriteResult},
};

/// See the module.
#[derive(Debug, Default)]
pub struct Reconciler {
    facts: Facts,
    services: BTreeMap<ServiceKey, History>,
    leases: AgentLeases,
    nodes: Nodes,
    policy: Policy,
    touched: Touched,
    external: External,
    leading: Option<Leading>,
    /// Kept by a follower too: what it wrote may be seen after it ceased to lead.
    begun: Begun,
    news: News,
}

/// The Services to decide about anew.
#[derive(Debug, Default)]
struct Touched {
    /// Every Service there is.
    all: bool,
    /// These, though they may be gone.
    some: BTreeSet<ServiceKey>,
}

/// The Services of boxes outside the cluster.
#[derive(Debug, Default)]
struct External {
    services: BTreeSet<ServiceKey>,
    /// Those that enter at the nodes' own ports.
    at_nodes: BTreeSet<ServiceKey>,
    /// Whether something changed that matters to them.
    changed: bool,
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
            Changed::Service(key) => self.service_changed(key, created),
            Changed::Node(name) => {
                self.external.changed |= !self.external.services.is_empty();
                self.refresh(&name);
            }
            Changed::Lease(lease, facts) => {
                self.external.changed |= external_of_edge_lease(&lease).is_some();
                let mut nodes = self.leases.apply(&lease, facts, now);
                nodes.extend(node_of_agent_lease(&lease).map(str::to_owned));
                nodes.iter().for_each(|name| self.refresh(name));
            }
            Changed::Endpoints(key) => {
                let spec = self.services.get(&key).and_then(History::spec);
                if spec.is_some_and(needs_endpoints) {
                    self.external.changed |= self.external.services.contains(&key);
                    self.touched.some.insert(key);
                }
            }
            Changed::External => self.external.changed = true,
            Changed::LoadBalancer(key) => {
                self.external.changed = true;
                self.touched.some.insert(key);
            }
        }
    }

    fn service_changed(&mut self, key: ServiceKey, created: Option<Instant>) {
        let old = self.services.remove(&key);
        let is_external = |facts: &Arc<ServiceFacts>| facts.is_external();
        let was_external = self.external.services.remove(&key);
        if self.facts.service(&key).is_some_and(is_external) {
            self.external.services.insert(key.clone());
            self.external.changed = true;
        }
        self.external.changed |= was_external;
        self.external.at_nodes.remove(&key);
        if let Some(facts) = self.facts.service(&key) {
            if let Some(leading) = &self.leading
                && old.as_ref().is_none_or(|old| old.facts.asks != facts.asks)
            {
                self.news.events.extend(leading.other_manager(&key, facts));
            }
            let new = History::after(old, facts.clone(), created);
            let entrance = new.spec().map(|spec| spec.entrance);
            if facts.is_external() && entrance == Some(Entrance::ClusterIp) {
                self.external.at_nodes.insert(key.clone());
            }
            self.services.insert(key.clone(), new);
        } else {
            self.begun.forget(&key);
        }
        self.touched.some.insert(key);
    }

    /// Joins anew what is known of a node. Touches the Services that it concerns: all, or
    /// those that it newly refuses, no longer refuses, or has now observed.
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
        let liveness = |node: Option<&Node>| node.and_then(|node| node.liveness);
        let is_same = liveness(self.nodes.get(name)) == liveness(node.as_ref());
        self.external.changed |= !is_same && !self.external.services.is_empty();
        self.external.changed |= !self.external.at_nodes.is_empty();
        match (self.nodes.get(name), &node) {
            (None, None) => {}
            (Some(old), Some(new)) if !new.differs_for_all(old) => {
                let (low, high) = (
                    old.observed.min(new.observed),
                    old.observed.max(new.observed),
                );
                let is_between = |service: &History| {
                    low < Some(service.changed) && Some(service.changed) <= high
                };
                let services = (low != high)
                    .then_some(&self.services)
                    .into_iter()
                    .flatten();
                let observed = services.filter(|(_, service)| is_between(service));
                let (old, new) = (old.report.as_deref(), new.report.as_deref());
                let refused = Report::differing(old, new).into_iter();
                let touched = observed.map(|(key, _)| key).chain(refused).cloned();
                self.touched.some.extend(touched);
            }
            _ => self.touched.all = true,
        }
        match node {
            Some(node) => self.nodes.insert(name.to_owned(), node),
            None => self.nodes.remove(name),
        };
    }

    /// What to do from now on.
    pub fn begin(&mut self, role: Role) {
        let known = self.leading.as_ref().map_or(Role::Follow, |it| it.role);
        if role == known {
            return;
        }
        self.touched.all = true;
        self.leading = (role != Role::Follow).then(|| Leading {
            role,
            ..Leading::default()
        });
        if let Some(leading) = self.leading.as_ref().filter(|_| role == Role::Lead) {
            for (key, service) in &mut self.services {
                let event = leading.other_manager(key, &service.facts);
                self.news.events.extend(event);
                service.begin_to_lead();
            }
        }
    }

    /// Whether it is to leave, and nothing is left that it could remove.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let is_left = |service: &History| Difference::removal(&service.facts).is_some();
        self.leading.as_ref().is_some_and(|leading| {
            leading.role == Role::Leave
                && (leading.is_forbidden
                    || self.facts.missing().is_empty() && !self.services.values().any(is_left))
        })
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
            keys.extend(self.services.keys().cloned());
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
        leading.queue.watched_by(self.nodes.len());
        for key in touched {
            if let Some(service) = self.services.get(&key) {
                // Who has waited long enough to say why waits like all others.
                let is_new =
                    service.waiting_since.is_some() && service.facts.status.serving.is_none();
                let is_first = is_new || leading.role == Role::Leave;
                let rank = if is_first { Rank::First } else { Rank::Refresh };
                leading.queue.touch(&key, rank, now.instant);
            } else {
                leading.queue.forget(&key);
            }
        }
    }

    /// Whether there is a Service to decide about now.
    #[must_use]
    pub fn is_due(&self, now: Now) -> bool {
        let next = self.leading.as_ref().and_then(|it| it.queue.next());
        next.is_some_and(|at| at <= now.instant)
    }

    /// The next status to be written now. Its end must be reported by [`Self::finish`].
    pub fn next_write(&mut self, now: Now) -> Option<StatusWrite> {
        let cluster = Cluster {
            nodes: &self.nodes,
            facts: &self.facts,
            policy: &self.policy,
        };
        let leading = self.leading.as_mut()?;
        while let Some(key) = leading.queue.take(now.instant) {
            let Some(service) = self.services.get_mut(&key) else {
                leading.queue.forget(&key);
                continue;
            };
            if let Some(write) = leading.consider(&key, service, &cluster, &mut self.news, now) {
                let (ports, serving) = (&write.difference.ports_error, &write.difference.serving);
                let ports = ports.iter().map(|_| Part::PortsError);
                let parts = ports.chain(serving.iter().map(|_| Part::Serving));
                leading.queue.write(&key, parts, now.instant);
                self.begun.begin(write.clone());
                return Some(write);
            }
        }
        None
    }

    /// A write ended.
    pub fn finish(&mut self, write: &StatusWrite, result: WriteResult, now: Now) {
        if let Some(leading) = &mut self.leading {
            leading.is_forbidden = matches!(result, WriteResult::Forbidden);
            match &result {
                WriteResult::Failed | WriteResult::Forbidden => {
                    leading.queue.failed(&write.key, now.instant)
                }
                WriteResult::Conflict | WriteResult::Gone => {
                    leading.queue.refused(&write.key, now.instant)
                }
                WriteResult::Written(_) => leading.queue.done(&write.key, now.instant),
            }
        }
        if let WriteResult::Written(service) = result {
            self.seen(&service, now.instant);
            for change in self.facts.answered(*service) {
                self.changed(change, None, now);
            }
        }
    }

    /// The Service is seen like this: what was written is made known.
    fn seen(&mut self, service: &Service, now: Instant) {
        let Some(write) = self.begun.carried_out(service) else {
            return;
        };
        if let Some(known) = self.services.get_mut(&write.key)
            && let Some(ingress) = &write.difference.ingress
        {
            known.edited = false;
            known.overwrites.wrote(write.after.listed.clone());
            let since = known.waiting_since.take_if(|_| !ingress.is_empty());
            let waited = since.map(|since| now.saturating_duration_since(since));
            self.news.waited.extend(waited);
        }
        let events = write.news.into_iter().enumerate();
        let events = events.map(|(index, happened)| ServiceEvent {
            key: write.key.clone(),
            uid: write.uid.clone(),
            happened,
            // The same in every process that sees it carried out.
            id: format!("{}-{index}", write.version),
        });
        self.news.events.extend(events);
    }

    /// What boxes outside the cluster are planned from, if it changed and is complete.
    pub fn take_snapshot(&mut self) -> Option<Snapshot> {
        let is_known = self.facts.knows_externals();
        let changed = is_known && mem::take(&mut self.external.changed);
        changed.then(|| {
            let services = self.external.services.iter();
            let services = services.filter_map(|key| Some((key, self.services.get(key)?)));
            let nodes = NodesNow::of(services, &self.nodes, self.facts.endpoints());
            Snapshot::of(&self.facts, &self.external.services, nodes)
        })
    }

    /// What is to be made known now.
    pub fn take_news(&mut self) -> News {
        mem::take(&mut self.news)
    }

    /// When there is something to do next. `writable` is whether a write could begin.
    #[must_use]
    pub fn next_turn(&self, writable: bool) -> Option<Instant> {
        let leading = self.leading.as_ref().filter(|_| writable);
        let write = leading.and_then(|leading| leading.queue.next());
        self.leases.next().into_iter().chain(write).min()
    }

    /// How many Services there is something to do for; none for a follower.
    #[must_use]
    pub fn queue_depth(&self, now: Now) -> Depth {
        let leading = self.leading.as_ref();
        leading.map_or(Depth::default(), |it| it.queue.depth(now.instant))
    }

    /// The states of all Services, for metrics.
    pub fn service_states(&self) -> impl Iterator<Item = &'static str> {
        self.services.values().filter_map(|it| it.facts.state())
    }

    /// The states of all nodes, for metrics.
    pub fn node_states(&self) -> impl Iterator<Item = &'static str> {
        let others = self.facts.node_count().saturating_sub(self.nodes.len());
        let opted_in = self.nodes.values().map(Node::state);
        opted_in.chain(std::iter::repeat_n("not_opted_in", others))
    }

    /// What is known of all Services and nodes, for people.
    #[must_use]
    pub fn overview(&self) -> Overview {
        explain::overview(&self.services, &self.cluster())
    }

    /// Why each node is listed for a Service, or not. `None` if it is no Service of ours.
    #[must_use]
    pub fn explain(&self, key: &ServiceKey, now: Now) -> Option<ServiceExplanation> {
        explain::service(key, self.services.get(key)?, &self.cluster(), now)
    }

    fn cluster(&self) -> Cluster<'_> {
        Cluster {
            nodes: &self.nodes,
            facts: &self.facts,
            policy: &self.policy,
        }
    }

    /// Why Services are refused a port, for metrics: one reason per Service.
    pub fn refusals(&self) -> impl Iterator<Item = &'static str> {
        let services = self.services.values();
        services.filter_map(|service| refused_for(&service.facts.status))
    }
}
