//! All nodes: which Services a change of one concerns, and when a silent one dies.

use std::{
    collections::BTreeMap,
    mem,
    time::{Duration, Instant},
};

use highwire_api::{ResourceVersion, ServiceKey, names::node_of_agent_lease};
use jiff::Timestamp;

use super::node::{AgentReport, LeaseRecord, LeaseView, NodeFacts, NodeRecord};
use crate::liveness::{Now, Pulse, Vitality, lapse_together};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    by_name: BTreeMap<String, NodeRecord>,
    pulse: Pulse,
    /// When the controllers' own Lease was renewed; it keeps the pulse.
    controller_renewed: Option<Timestamp>,
    /// No Lease expires before this.
    next_judgement: Option<Instant>,
}

/// The Services that a change of a node concerns.
#[derive(Debug, Default)]
pub(super) struct Concern {
    /// Every Service.
    pub(super) all: bool,
    /// These Services.
    pub(super) some: Vec<ServiceKey>,
    /// The Services whose last change lies between these observed versions.
    pub(super) progress: (Option<ResourceVersion>, Option<ResourceVersion>),
}

impl Concern {
    const NONE: Self = Self {
        all: false,
        some: Vec::new(),
        progress: (None, None),
    };

    fn all_if(all: bool) -> Self {
        Self { all, ..Self::NONE }
    }
}

impl Nodes {
    /// All nodes, also those of which only a report or a Lease is known.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &NodeRecord)> + Clone {
        self.by_name.iter()
    }

    /// The names of the nodes of which something is known.
    pub(super) fn names_with(&self, has: impl Fn(&NodeRecord) -> bool) -> Vec<String> {
        let having = self.by_name.iter().filter(|(_, node)| has(node));
        having.map(|(name, _)| name.clone()).collect()
    }

    /// The Node is like this, or gone.
    pub(super) fn set_facts(&mut self, name: &str, facts: Option<NodeFacts>) -> Concern {
        let opted_in = |facts: &Option<NodeFacts>| facts.as_ref().is_some_and(|f| f.opted_in);
        self.change(name, |node| {
            let old = mem::replace(&mut node.facts, facts);
            Concern::all_if(old != node.facts && (opted_in(&old) || opted_in(&node.facts)))
        })
    }

    /// The LoadBalancerNode is like this, or gone.
    pub(super) fn set_report(&mut self, name: &str, report: Option<AgentReport>) -> Concern {
        self.change(name, |node| {
            let old = mem::replace(&mut node.report, report);
            let none = BTreeMap::new();
            let old = old.as_ref().map_or(&none, |report| &report.conflicts);
            let new = node
                .report
                .as_ref()
                .map_or(&none, |report| &report.conflicts);
            let came = new
                .iter()
                .filter(|(key, refusals)| old.get(*key) != Some(*refusals));
            let went = old.iter().filter(|(key, _)| !new.contains_key(*key));
            Concern {
                some: came.chain(went).map(|(key, _)| key.clone()).collect(),
                ..Concern::NONE
            }
        })
    }

    /// All Leases have been read.
    pub(super) fn leases_read(&mut self, now: Now) {
        self.pulse.begin(now);
    }

    /// The Lease is like this, or gone.
    pub(super) fn set_lease(&mut self, lease: &str, view: Option<&LeaseView>, now: Now) -> Concern {
        let Some(name) = node_of_agent_lease(lease) else {
            let renewed = view.and_then(|view| view.renewed);
            let news = renewed.is_some() && renewed != self.controller_renewed;
            self.controller_renewed = renewed;
            return Concern::all_if(news && self.hear(now));
        };
        let mut renewed = false;
        let mut expires = None;
        let mut concern = self.change(name, |node| {
            node.lease = view.map(|view| {
                let vitality = match node.lease.take() {
                    None => Vitality::first_seen(view.renewed, view.duration, now),
                    Some(LeaseRecord { mut vitality, .. }) => {
                        renewed = vitality.seen_again(view.renewed, view.duration, now);
                        vitality
                    }
                };
                expires = vitality.due();
                LeaseRecord {
                    vitality,
                    observed: view.observed,
                }
            });
            Concern::NONE
        });
        // A renewal only moves an expiry away, so the known bound stays good.
        self.next_judgement = self.next_judgement.into_iter().chain(expires).min();
        concern.all |= renewed && self.hear(now);
        concern
    }

    /// When [`Self::expire`] is worth a call.
    pub(super) fn next_judgement(&self) -> Option<Instant> {
        self.next_judgement
    }

    /// Judges the Leases whose time has come: they are lost, and after `hold` stale,
    /// unless they lapse together while their Nodes are Ready.
    pub(super) fn expire(&mut self, hold: Duration, now: Now) -> Concern {
        if self.next_judgement.is_none_or(|due| due > now.instant) {
            return Concern::NONE;
        }
        if self.pulse.is_silent(now) {
            // The end of the silence gives everyone another duration.
            self.next_judgement = None;
            return Concern::NONE;
        }
        let vouched_for = self.by_name.values().filter(|node| node.is_vouched_for());
        let leases = vouched_for.filter_map(|node| node.lease.as_ref());
        let together = lapse_together(leases.map(|lease| &lease.vitality), now);
        Concern::all_if(
            self.judge(|vitality, vouched_for| vitality.judge(together && vouched_for, hold, now)),
        )
    }

    /// A renewal was seen. Returns whether it changed what is thought of any node.
    fn hear(&mut self, now: Now) -> bool {
        self.pulse.beat(now) && self.judge(|vitality, _| vitality.reprieve(now))
    }

    /// Lets `judge` look at every Lease, and at whether somebody else vouches for the
    /// node.
    fn judge(&mut self, mut judge: impl FnMut(&mut Vitality, bool) -> bool) -> bool {
        let mut changed = false;
        for node in self.by_name.values_mut() {
            let vouched_for = node.is_vouched_for();
            if let Some(lease) = &mut node.lease {
                changed |= judge(&mut lease.vitality, vouched_for);
            }
        }
        let leases = self.by_name.values().filter_map(|node| node.lease.as_ref());
        self.next_judgement = leases.filter_map(|lease| lease.vitality.due()).min();
        changed
    }

    /// Changes a node, and adds to the concern what its standing and progress concern.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut NodeRecord) -> Concern) -> Concern {
        let node = self.by_name.entry(name.to_owned()).or_default();
        let standing = |node: &NodeRecord| (mem::discriminant(&node.standing()), node.voice());
        let before = (standing(node), node.observed());
        let mut concern = change(node);
        concern.all |= standing(node) != before.0;
        concern.progress = (before.1, node.observed());
        if node.is_forgotten() {
            self.by_name.remove(name);
        }
        concern
    }
}
