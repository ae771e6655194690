//! The agent's event loop: takes in what has changed, and has the kernel follow.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use highwire_api::{
    Family, ResourceVersion, ServiceKey, ServiceSpec,
    node::{Conflict, ProxyMode},
};
use highwire_runtime::heartbeat::Heartbeat;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::watcher::Event;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::{info, warn};

use crate::{
    claims::HostFacts,
    config::Config,
    decide::{Decision, Facts, decide},
    host::{
        addresses::{AddressPolicy, HostAddress},
        forwarding,
        pods::PodIndex,
        sockets::Sockets,
        table_events::TableEvent,
    },
    kernel::Kernel,
    kernel_table::{Failure, KernelTable},
    left_out::{LeftOut, culprits},
    metrics::Metrics,
    node::NodeFacts,
    report::{Readiness, Report, names_all},
    reserved::ReservedPorts,
    ruleset::{DataPath, Elements},
    services::ServiceIndex,
    udp::Frontends,
};

/// Something the agent has learned.
#[derive(Debug)]
pub enum Input {
    /// A Service changed.
    Service(Box<Event<Service>>),
    /// The agent's own Node changed.
    Node(Box<Event<Node>>),
    /// The host's addresses are now these.
    HostAddresses(Vec<HostAddress>),
    /// Our table was changed, by us or by somebody else.
    Table(TableEvent),
    /// kube-proxy now works like this, or shows no sign of life.
    Proxy(Option<ProxyMode>),
    /// A Pod on this node changed.
    Pod(Box<Event<Pod>>),
}

/// A burst is over when nothing has come for this long …
const QUIET: Duration = Duration::from_millis(2);
/// … or, so that a steady stream cannot starve the kernel, after this long.
const LONGEST_BURST: Duration = Duration::from_millis(40);
/// How often sysctls and sockets are looked at.
const LOOK: Duration = Duration::from_secs(4);

/// A node whose rules could not be changed for less than this is as ready as before:
/// the kernel has the last good ones.
const GRACE: Duration = Duration::from_secs(10);

/// The owner of everything the agent knows.
#[derive(Debug)]
pub struct Programmer {
    address_policy: AddressPolicy,
    metrics: Metrics,
    heartbeat: Heartbeat,
    reports: watch::Sender<Option<Report>>,
    udp: watch::Sender<Option<Frontends>>,
    services: ServiceIndex,
    node: Option<NodeFacts>,
    host_addresses: Option<Vec<HostAddress>>,
    pods: PodIndex,
    /// `None` until looked for.
    proxy_mode: Option<Option<ProxyMode>>,
    reserved: ReservedPorts,
    sockets: Sockets,
    table: KernelTable,
    left_out: LeftOut,
}

impl Programmer {
    /// A programmer that knows nothing yet.
    #[must_use]
    pub fn new(
        config: &Config,
        kernel: Kernel,
        metrics: Metrics,
        heartbeat: Heartbeat,
        reports: watch::Sender<Option<Report>>,
        udp: watch::Sender<Option<Frontends>>,
    ) -> Self {
        Self {
            address_policy: config.address_policy.clone(),
            table: KernelTable::new(kernel, metrics.clone()),
            metrics,
            heartbeat,
            reports,
            udp,
            services: ServiceIndex::new(config.class_policy),
            node: None,
            host_addresses: None,
            pods: PodIndex::default(),
            proxy_mode: None,
            reserved: config.reserved_ports.clone(),
            sockets: Sockets::new(config.listener_hold_down),
            left_out: LeftOut::default(),
        }
    }

    /// Runs until the senders of inputs are gone.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.table.due();
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => {
                        self.absorb(input);
                        self.absorb_burst(&mut inputs).await;
                    }
                    None => return,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                _ = look.tick() => {}
            }
            self.heartbeat.beat();
            self.reconcile().await;
        }
    }

    async fn absorb_burst(&mut self, inputs: &mut mpsc::Receiver<Input>) {
        let start = Instant::now();
        while start.elapsed() < LONGEST_BURST {
            match timeout(QUIET, inputs.recv()).await {
                Ok(Some(input)) => self.absorb(input),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn absorb(&mut self, input: Input) {
        match input {
            Input::Service(event) => self.services.absorb(*event),
            Input::Node(event) => match *event {
                Event::Apply(node) | Event::InitApply(node) => {
                    self.node = Some(NodeFacts::of(&node));
                }
                Event::Delete(node) => {
                    self.node = Some(NodeFacts {
                        enabled: false,
                        ..NodeFacts::of(&node)
                    });
                }
                Event::Init | Event::InitDone => {}
            },
            Input::Table(event) => self.table.notice(event, Instant::now()),
            Input::Proxy(mode) => self.proxy_mode = Some(mode),
            Input::Pod(event) => self.pods.absorb(*event),
            Input::HostAddresses(addresses) => {
                info!(count = addresses.len(), "host addresses read");
                self.host_addresses = Some(addresses);
            }
        }
    }

    /// Brings the kernel to what is decided, once everything needed is known.
    async fn reconcile(&mut self) {
        let (Some(services), Some(node), Some(host_addresses), Some(pods), Some(proxy_mode)) = (
            self.services.wanted(),
            &self.node,
            &self.host_addresses,
            self.pods.pods(),
            self.proxy_mode,
        ) else {
            return;
        };
        let revision = self.services.revision();
        let now = Instant::now();
        self.left_out.review(services, now);
        let left_out = self.left_out.words().clone();
        let (listeners, held) = self.sockets.current(revision, now);
        let facts = Facts {
            services,
            node,
            host_addresses,
            address_policy: &self.address_policy,
            host: HostFacts {
                listeners,
                held,
                reserved: &self.reserved,
                pods,
                occupied: self.services.occupied(),
            },
            left_out: &left_out,
        };
        let mut decision = decide(&facts);
        let (enabled, node_uid) = (node.enabled, node.uid.clone());
        let path = DataPath::beside(proxy_mode);
        let wanted = Elements::of(&decision.plan, path);
        let tried = self.table.is_due();
        let mut result = self.table.bring_to(path, &wanted).await;
        if let Err(failure) = &result
            && failure.refused
            && tried
        {
            let last = self
                .reports
                .borrow()
                .as_ref()
                .map(|last| last.decision.served.clone());
            let before = last.unwrap_or_default();
            let refused = refused_by_nft(&self.table, path, &facts, &decision, &before).await;
            if !refused.is_empty() {
                for spec in refused {
                    warn!(service = %spec.key, "left out, because nft refuses it: {}", failure.message);
                    self.left_out.add(&spec, &failure.message, Instant::now());
                }
                decision = decide(&Facts {
                    left_out: self.left_out.words(),
                    ..facts
                });
                self.table.retry_now();
                let wanted = Elements::of(&decision.plan, path);
                result = self.table.bring_to(path, &wanted).await;
            }
        }
        self.sockets.note(&decision.beside);
        match result {
            Ok(()) => {
                self.tell_udp(&decision.udp);
                self.report(Report {
                    node_uid,
                    readiness: readiness(enabled, proxy_mode, &decision),
                    decision,
                    revision,
                    observed: self.services.observed(),
                    proxy_mode,
                });
            }
            Err(failure) => {
                let last = self.reports.borrow().clone();
                let still = last
                    .as_ref()
                    .map(|last| readiness(enabled, proxy_mode, &last.decision));
                self.report(behind(last, still, &failure, node_uid, proxy_mode));
            }
        }
    }

    /// Only once the kernel has the rules: a flow that is deleted before would be
    /// tracked again as it was.
    fn tell_udp(&self, frontends: &Frontends) {
        self.udp.send_if_modified(|known| {
            let changed = known.as_ref() != Some(frontends);
            if changed {
                *known = Some(frontends.clone());
            }
            changed
        });
    }

    fn report(&self, report: Report) {
        self.metrics.show(&report);
        self.log_conflicts(&report.decision);
        let told = self
            .reports
            .borrow()
            .as_ref()
            .map(|told| told.readiness.clone());
        if told.as_ref() != Some(&report.readiness) {
            let (reason, text) = (report.readiness.reason(), report.readiness.to_string());
            info!(reason, services = report.decision.served.len(), "{text}");
        }
        self.reports.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&report);
            if changed {
                *known = Some(report);
            }
            changed
        });
    }

    /// Each conflict is told once when it appears and once when it is gone.
    fn log_conflicts(&self, decision: &Decision) {
        let told = self.reports.borrow();
        let told = told
            .as_ref()
            .map_or(&[][..], |told| &told.decision.conflicts);
        let tell = |conflict: &Conflict, what| {
            let Conflict {
                service,
                protocol,
                port,
                reason,
                held_by,
            } = conflict;
            let reason = reason.as_str();
            info!(%service, port, %protocol, reason, held_by, "{what}");
        };
        // Both are sorted.
        for new in decision
            .conflicts
            .iter()
            .filter(|c| told.binary_search(c).is_err())
        {
            tell(new, "port refused");
        }
        for gone in told
            .iter()
            .filter(|c| decision.conflicts.binary_search(c).is_err())
        {
            tell(gone, "port no longer refused");
        }
    }
}

/// The Services of this decision that nft refuses. Those that were served `before` are
/// innocent at first.
async fn refused_by_nft(
    table: &KernelTable,
    path: DataPath,
    facts: &Facts<'_>,
    decision: &Decision,
    before: &BTreeSet<ServiceKey>,
) -> Vec<ServiceSpec> {
    let (served, others) = decision
        .served
        .iter()
        .cloned()
        .partition(|key| before.contains(key));
    let accepts = async |some: &BTreeSet<ServiceKey>| {
        let all = facts.services.keys();
        let rest = all.filter(|key| !some.contains(*key));
        let left_out = rest.map(|key| (key.clone(), String::new())).collect();
        let plan = decide(&Facts {
            left_out: &left_out,
            ..*facts
        })
        .plan;
        table.accepts(path, Elements::of(&plan, path)).await
    };
    let refused = culprits(served, others, accepts).await.unwrap_or_default();
    let specs = refused.iter().filter_map(|key| facts.services.get(key));
    specs.map(|wanted| wanted.spec.clone()).collect()
}

/// What to report while the kernel does not follow: what it still has. `still` is what
/// that makes of the node.
fn behind(
    last: Option<Report>,
    still: Option<Readiness>,
    failure: &Failure,
    node_uid: String,
    proxy_mode: Option<ProxyMode>,
) -> Report {
    let failed = |report: &Report| matches!(report.readiness, Readiness::ApplyFailed(_));
    let lasting = failure.since.elapsed() >= GRACE || last.as_ref().is_none_or(failed);
    let readiness = match still {
        Some(still) if !lasting => still,
        _ => Readiness::ApplyFailed(failure.message.clone()),
    };
    let last = last.unwrap_or_else(|| Report {
        node_uid: String::new(),
        readiness: Readiness::NotEnabled,
        decision: Decision::default(),
        revision: 0,
        observed: ResourceVersion::default(),
        proxy_mode,
    });
    Report {
        node_uid,
        readiness,
        proxy_mode,
        ..last
    }
}

/// What an applied decision makes of the node.
fn readiness(enabled: bool, proxy_mode: Option<ProxyMode>, decision: &Decision) -> Readiness {
    if !enabled {
        return Readiness::NotEnabled;
    }
    if proxy_mode.is_none() {
        return Readiness::ServiceProxyMissing;
    }
    if decision.plan.addresses.is_empty() {
        return Readiness::NoAddresses;
    }
    let served = |family| {
        decision
            .plan
            .forwards
            .keys()
            .any(|slot| slot.family == family)
    };
    // IPv4 must always be on where there is an IPv4 address, so that the admin
    // sees it before the first Service comes; IPv6 only once it is used.
    let has_v4 = decision
        .plan
        .addresses
        .iter()
        .any(std::net::IpAddr::is_ipv4);
    if has_v4 && !forwarding::is_on(Family::V4) {
        Readiness::ForwardingDisabled(Family::V4)
    } else if served(Family::V6) && !forwarding::is_on(Family::V6) {
        Readiness::ForwardingDisabled(Family::V6)
    } else if !names_all(&decision.conflicts) {
        Readiness::TooManyConflicts
    } else {
        Readiness::Programmed
    }
}

#[cfg(test)]
#[path = "programmer_tests.rs"]
mod tests;
