//! Everything the watches have said, as one value, and which Services an event
//! concerns.
//!
//! What an event costs: a renewed Lease, nothing per Service. A report, only the
//! Services whose change it confirms or whose conflicts change. An EndpointSlice, its
//! Service if that has the policy Local. A node that joins or leaves, all Services.

mod changes;
pub(crate) mod endpoints;
pub(crate) mod listing;
pub(crate) mod node;
mod nodes;
pub(crate) mod service;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Instant,
};

use highwire_api::{Family, ServiceKey, names::agent_lease};

use crate::{
    condition,
    desired::{Advertising, Decision, decide},
    ingress::{AddressSets, Listed},
    liveness::Now,
};
use changes::Changes;
use endpoints::{Endpoints, SliceKey, SliceView};
use listing::{Fed, Listing, Step};
use node::{AgentReport, LeaseView, NodeFacts};
use nodes::{Concern, Nodes};
use service::{Asks, ServiceRecord, ServiceView};

/// An event of one of the watches.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// Of the Services, of every type.
    Service(Fed<ServiceKey, Box<ServiceView>>),
    /// Of the Nodes.
    Node(Fed<String, NodeFacts>),
    /// Of the EndpointSlices that kube-proxy follows.
    Slice(Fed<SliceKey, SliceView>),
    /// Of the LoadBalancerNodes.
    Report(Fed<String, AgentReport>),
    /// Of the Leases in our namespace: the agents' and the controllers' own.
    Lease(Fed<String, LeaseView>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    services: BTreeMap<ServiceKey, ServiceRecord>,
    addresses: AddressSets,
    changes: Changes,
    nodes: Nodes,
    endpoints: Endpoints,
    listings: Listings,
    touched: Touched,
    advertising: Advertising,
}

#[derive(Debug, Default)]
struct Listings {
    services: Listing<ServiceKey>,
    nodes: Listing<String>,
    slices: Listing<SliceKey>,
    reports: Listing<String>,
    leases: Listing<String>,
}

/// The Services to look at again.
#[derive(Debug, Default)]
struct Touched {
    /// Every Service there is.
    all: bool,
    /// These, though they may be gone.
    some: BTreeSet<ServiceKey>,
}

impl Index {
    /// An index that knows nothing yet.
    pub(crate) fn new(advertising: Advertising) -> Self {
        Self {
            advertising,
            ..Self::default()
        }
    }

    /// Takes an event in.
    pub(crate) fn apply(&mut self, input: Input, now: Now) {
        match input {
            Input::Service(fed) => self.apply_service(fed, now),
            Input::Node(fed) => {
                let known = || self.nodes.names_with(|node| node.facts.is_some());
                for (name, facts) in self.listings.nodes.step(fed, known).changes() {
                    let concern = self.nodes.set_facts(&name, facts);
                    self.touch(concern);
                }
            }
            Input::Slice(fed) => {
                let known = || self.endpoints.slices().cloned().collect();
                for (key, slice) in self.listings.slices.step(fed, known).changes() {
                    let concerned = self.endpoints.set(key, slice);
                    let local = concerned.into_iter().filter(|service| {
                        let service = self.services.get(service);
                        service.is_some_and(ServiceRecord::needs_endpoints)
                    });
                    self.touched.some.extend(local);
                }
            }
            Input::Report(fed) => {
                let known = || self.nodes.names_with(|node| node.report.is_some());
                for (name, report) in self.listings.reports.step(fed, known).changes() {
                    let concern = self.nodes.set_report(&name, report);
                    self.touch(concern);
                }
            }
            Input::Lease(fed) => {
                if fed == Fed::Complete {
                    self.nodes.leases_read(now);
                }
                let names = || self.nodes.names_with(|node| node.lease.is_some());
                let known = || names().iter().map(|name| agent_lease(name)).collect();
                for (name, lease) in self.listings.leases.step(fed, known).changes() {
                    let concern = self.nodes.set_lease(&name, lease.as_ref(), now);
                    self.touch(concern);
                }
            }
        }
    }

    fn apply_service(&mut self, fed: Fed<ServiceKey, Box<ServiceView>>, now: Now) {
        let known = || self.services.keys().cloned().collect();
        match self.listings.services.step(fed, known) {
            Step::Wait => {}
            Step::Adopt(key, view) => self.put_service(key, *view, None),
            Step::Update(key, view) => self.update_service(key, *view, now),
            Step::Forget(keys) => keys.iter().for_each(|key| self.drop_service(key)),
        }
    }

    /// The watches whose first list is not complete yet.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let lists = &self.listings;
        [
            ("Services", lists.services.is_complete()),
            ("Nodes", lists.nodes.is_complete()),
            ("EndpointSlices", lists.slices.is_complete()),
            ("LoadBalancerNodes", lists.reports.is_complete()),
            ("Leases", lists.leases.is_complete()),
        ]
        .into_iter()
        .filter_map(|(kind, complete)| (!complete).then_some(kind))
        .collect()
    }

    /// The Services that something happened to since last asked, also those gone.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<ServiceKey> {
        let touched = mem::take(&mut self.touched);
        let mut keys = touched.some;
        if touched.all {
            keys.extend(self.services.keys().cloned());
        }
        keys
    }

    /// Makes every Service be looked at.
    pub(crate) fn touch_all(&mut self) {
        self.touched.all = true;
    }

    /// A Service.
    pub(crate) fn service(&self, key: &ServiceKey) -> Option<&ServiceRecord> {
        self.services.get(key)
    }

    /// What a Service's ingress should say.
    pub(crate) fn decide(&self, key: &ServiceKey) -> Option<Decision> {
        let has_endpoint = |node: &str, family: Family| self.endpoints.is_ready(key, node, family);
        let (nodes, advertising) = (self.nodes.iter(), &self.advertising);
        self.services
            .get(key)
            .map(|service| decide(key, service, nodes, &has_endpoint, advertising))
    }

    /// Why Services are refused a port, for metrics: one reason per Service.
    pub(crate) fn refused(&self) -> impl Iterator<Item = &'static str> {
        let services = self.services.values();
        services.filter_map(|service| condition::reason(service.condition.as_ref()))
    }

    /// The states of all Services and nodes, for metrics.
    pub(crate) fn states(
        &self,
    ) -> (
        impl Iterator<Item = &'static str>,
        impl Iterator<Item = &'static str>,
    ) {
        let nodes = self.nodes.iter().filter(|(_, node)| node.facts.is_some());
        (
            self.services.values().map(ServiceRecord::state),
            nodes.map(|(_, node)| node.standing().state()),
        )
    }

    /// What our own write made of a Service. The watch will tell too, but later, and
    /// it may have told already that the Service is gone.
    pub(crate) fn written(&mut self, key: &ServiceKey, view: ServiceView, now: Now) {
        if self
            .services
            .get(key)
            .is_some_and(|known| known.uid == view.uid)
        {
            self.update_service(key.clone(), view, now);
        }
    }

    /// Has what a status advertises take no more memory than the first of its kind.
    pub(crate) fn share(&mut self, listed: &mut Listed) {
        self.addresses.share(&mut listed.ingress);
    }

    /// When a Service was created that has an address now; said once.
    pub(crate) fn take_waiting(&mut self, key: &ServiceKey) -> Option<Instant> {
        let service = self.services.get_mut(key)?;
        if service.listed.ingress.is_empty() {
            None
        } else {
            service.waiting_since.take()
        }
    }

    /// When [`Self::expire`] is worth a call.
    pub(crate) fn next_judgement(&self) -> Option<Instant> {
        self.nodes.next_judgement()
    }

    /// Judges the Leases whose time has come.
    pub(crate) fn expire(&mut self, now: Now) {
        let concern = self.nodes.expire(self.advertising.empty_hold, now);
        self.touch(concern);
    }

    fn touch(&mut self, concern: Concern) {
        self.touched.all |= concern.all;
        self.touched.some.extend(concern.some);
        let (one, other) = concern.progress;
        self.touched
            .some
            .extend(self.changes.between(one, other).cloned());
    }

    fn update_service(&mut self, key: ServiceKey, view: ServiceView, now: Now) {
        let known = self.services.get(&key);
        // Our own write's answer may have overtaken the watch.
        if known.is_none_or(|known| known.uid != view.uid || known.version < view.version) {
            self.put_service(key, view, Some(now.instant));
        }
    }

    fn put_service(&mut self, key: ServiceKey, mut view: ServiceView, created: Option<Instant>) {
        self.share(&mut view.listed);
        let old = self.services.remove(&key);
        if let Some(old) = &old {
            self.changes.remove(old.changed, &key);
        }
        if let Some(record) = ServiceRecord::after(old.as_ref(), view, created) {
            if matches!(record.asks, Asks::Serve(_)) {
                self.changes.insert(record.changed, &key);
            }
            self.services.insert(key.clone(), record);
        }
        self.touched.some.insert(key);
    }

    fn drop_service(&mut self, key: &ServiceKey) {
        if let Some(old) = self.services.remove(key) {
            self.changes.remove(old.changed, key);
            self.touched.some.insert(key.clone());
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
