//! What the watches of the simulation have shown: when each Service's status changed, and
//! when each node reported.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use highwire_api::LoadBalancerNode;
use k8s_openapi::api::core::v1::{Service, ServiceStatus};
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use super::services::NAMESPACE;

/// No change for so long, and what is waited for is taken as final.
const QUIET: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// A Service as the watch last showed it.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    /// The addresses in its ingress.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// When it got its first address.
    pub(super) first: Option<Instant>,
    /// Whether its condition says that a port is refused.
    pub(super) refused: bool,
    /// How often its status changed.
    pub(super) writes: usize,
    status: Option<ServiceStatus>,
    /// When the status last changed, or the Service came.
    changed: Instant,
}

/// All that was shown; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct View(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    services: BTreeMap<String, Shown>,
    /// When each node's report last changed.
    reports: BTreeMap<String, Instant>,
    /// How many events of Services came that a real agent would have got too.
    events: usize,
    changed: Option<Instant>,
}

impl View {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in an event of the Services. Those of others do not count.
    pub(super) fn service(&self, event: &Event<Service>) {
        let (Event::Apply(service) | Event::InitApply(service) | Event::Delete(service)) = event
        else {
            return;
        };
        if service.namespace().as_deref() != Some(NAMESPACE) {
            return;
        }
        let mut known = self.known();
        match event {
            Event::Apply(service) => {
                known.events += 1;
                known.show(service);
            }
            Event::InitApply(service) => known.show(service),
            Event::Delete(service) => {
                known.events += 1;
                known.changed = Some(Instant::now());
                known.services.remove(&service.name_any());
            }
            Event::Init | Event::InitDone => {}
        }
    }

    /// Takes in an event of the nodes' reports.
    pub(super) fn report(&self, event: &Event<LoadBalancerNode>) {
        let mut known = self.known();
        match event {
            Event::Apply(node) | Event::InitApply(node) if node.status.is_some() => {
                known.reports.insert(node.name_any(), Instant::now());
            }
            Event::Delete(node) => {
                known.reports.remove(&node.name_any());
            }
            _ => {}
        }
    }

    /// How many nodes have reported.
    pub(super) fn reported(&self) -> usize {
        self.known().reports.len()
    }

    /// When the last report changed.
    pub(super) fn last_report(&self) -> Option<Instant> {
        self.known().reports.values().max().copied()
    }

    /// How many events of Services there were.
    pub(super) fn events(&self) -> usize {
        self.known().events
    }

    /// The Services of these names' prefix.
    pub(super) fn services(&self, prefix: &str) -> Vec<(String, Shown)> {
        let known = self.known();
        let named = known
            .services
            .iter()
            .filter(|(name, _)| name.starts_with(prefix));
        named
            .map(|(name, shown)| (name.clone(), shown.clone()))
            .collect()
    }

    /// How often the statuses of all Services have changed.
    pub(super) fn writes(&self) -> usize {
        self.known()
            .services
            .values()
            .map(|shown| shown.writes)
            .sum()
    }

    /// Waits until `is_done` is true of `count` Services with that prefix and no status has
    /// changed for a while. Returns when the last one did.
    pub(super) async fn settled(
        &self,
        what: &str,
        (prefix, count): (&str, usize),
        limit: Duration,
        is_done: impl Fn(&Shown) -> bool,
    ) -> Result<Instant> {
        let deadline = Instant::now() + limit;
        loop {
            let (done, changed) = {
                let known = self.known();
                let named = known
                    .services
                    .iter()
                    .filter(|(name, _)| name.starts_with(prefix));
                (
                    named.filter(|(_, shown)| is_done(shown)).count(),
                    known.changed,
                )
            };
            if done == count
                && let Some(changed) = changed.filter(|at| at.elapsed() >= QUIET)
            {
                return Ok(changed);
            }
            if Instant::now() > deadline {
                bail!("waited {limit:?} for {what}: {done} of {count}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Known {
    fn show(&mut self, service: &Service) {
        let now = Instant::now();
        let ingress = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let addresses: BTreeSet<IpAddr> = ingress
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ip.as_ref()?.parse().ok())
            .collect();
        let conditions = service
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        let refused = conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "LoadBalancerPortsError" && condition.status == "True"
        });
        let shown = self.services.entry(service.name_any()).or_insert(Shown {
            addresses: BTreeSet::new(),
            first: None,
            refused,
            writes: 0,
            status: service.status.clone(),
            changed: now,
        });
        if shown.status != service.status {
            shown.status.clone_from(&service.status);
            shown.writes += 1;
            shown.changed = now;
        }
        if !addresses.is_empty() {
            shown.first.get_or_insert(now);
        }
        (shown.addresses, shown.refused) = (addresses, refused);
        self.changed = self.changed.max(Some(shown.changed));
    }
}
