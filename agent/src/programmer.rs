//! The agent's event loop: takes in what has changed, and has the kernel follow.

use std::time::{Duration, Instant};

use highwire_api::{
    Family, ResourceVersion,
    node::{Conflict, ProxyMode},
    runtime::heartbeat::Heartbeat,
};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::watcher::Event;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

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
    kernel::{Kernel, NftError},
    metrics::Metrics,
    node::NodeFacts,
    report::{Readiness, Report},
    reserved::ReservedPorts,
    ruleset::{DataPath, Elements, Transaction},
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
/// How often sysctls and counters are looked at.
const LOOK: Duration = Duration::from_secs(4);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What the kernel has, as far as we know.
#[derive(Debug)]
enum Table {
    /// Not known: the next transaction builds the whole table.
    Unknown,
    /// The chains of this path and exactly these elements.
    Holds(DataPath, Elements),
}

impl Table {
    /// What makes it hold these elements; `None` if it does already.
    fn transaction_to(&self, path: DataPath, wanted: &Elements) -> Option<Transaction> {
        match self {
            Self::Holds(held, now) if *held == path => Transaction::between(now, wanted),
            // kube-proxy has changed its mode, or the table is not known.
            Self::Holds(..) | Self::Unknown => Some(Transaction::Replace(path, wanted.clone())),
        }
    }
}

/// After a failed transaction: when to try again.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    delay: Duration,
}

/// The owner of everything the agent knows.
#[derive(Debug)]
pub struct Programmer {
    address_policy: AddressPolicy,
    kernel: Kernel,
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
    table: Table,
    /// Every Service event up to this version is in the kernel.
    observed: ResourceVersion,
    /// Transactions of ours that the kernel has not told of yet.
    own_changes_untold: u32,
    retry: Option<Retry>,
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
            kernel,
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
            table: Table::Unknown,
            observed: ResourceVersion::default(),
            own_changes_untold: 0,
            retry: None,
        }
    }

    /// Runs until the senders of inputs are gone.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry_at = self.retry.map_or_else(Instant::now, |retry| retry.at);
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => {
                        self.absorb(input);
                        self.absorb_burst(&mut inputs).await;
                    }
                    None => return,
                },
                () = sleep_until(retry_at.into()), if self.retry.is_some() => {}
                _ = look.tick() => self.show_connections().await,
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
            Input::Table(event) => self.notice(event),
            Input::Proxy(mode) => self.proxy_mode = Some(mode),
            Input::Pod(event) => self.pods.absorb(*event),
            Input::HostAddresses(addresses) => {
                info!(count = addresses.len(), "host addresses read");
                self.host_addresses = Some(addresses);
            }
        }
    }

    /// Each transaction of ours is told once; what is told beyond that is
    /// somebody else's.
    fn notice(&mut self, event: TableEvent) {
        if event == TableEvent::Changed && self.own_changes_untold > 0 {
            self.own_changes_untold -= 1;
            return;
        }
        self.own_changes_untold = 0;
        if let Table::Holds(..) = self.table {
            warn!("another program changed table inet highwire; it is put back");
            self.metrics.drift_repairs.inc();
            self.table = Table::Unknown;
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
        let (listeners, held) = self.sockets.current(revision, Instant::now());
        let decision = decide(&Facts {
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
        });
        self.sockets.note(&decision.beside);
        let (enabled, node_uid) = (node.enabled, node.uid.clone());
        if self.retry.is_some_and(|retry| Instant::now() < retry.at) {
            return;
        }
        let path = DataPath::beside(proxy_mode);
        let wanted = Elements::of(&decision.plan, path);
        let readiness = match self.bring_to(path, wanted).await {
            Ok(()) => {
                self.retry = None;
                self.observed = self.services.observed();
                self.tell_udp(&decision.udp);
                readiness(enabled, proxy_mode, &decision)
            }
            Err(error) => {
                self.table = Table::Unknown;
                let delay = self
                    .retry
                    .map_or(FIRST_RETRY, |r| (r.delay * 2).min(LAST_RETRY));
                self.retry = Some(Retry {
                    at: Instant::now() + delay,
                    delay,
                });
                error!(retry_in = ?delay, "{error}");
                Readiness::ApplyFailed(error.to_string())
            }
        };
        self.report(Report {
            node_uid,
            readiness,
            decision,
            revision,
            observed: self.observed,
            proxy_mode,
        });
    }

    async fn bring_to(&mut self, path: DataPath, wanted: Elements) -> Result<(), NftError> {
        let Some(transaction) = self.table.transaction_to(path, &wanted) else {
            return Ok(());
        };
        let start = Instant::now();
        let result = self.kernel.apply(&transaction).await;
        let seconds = start.elapsed().as_secs_f64();
        self.metrics.applied(&transaction, seconds, result.is_ok());
        result?;
        info!(
            kind = transaction.kind(),
            elements = transaction.cost(),
            milliseconds = start.elapsed().as_millis(),
            "nftables programmed"
        );
        debug!("transaction:\n{transaction}");
        self.table = Table::Holds(path, wanted);
        self.own_changes_untold += 1;
        Ok(())
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

    async fn show_connections(&self) {
        if let (Table::Holds(..), Ok(counters)) = (&self.table, self.kernel.counters().await) {
            self.metrics.show_connections(&counters);
        }
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
    } else {
        Readiness::Programmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn a_change_of_the_data_path_replaces_the_table_once() {
        let elements = Elements::of(
            &Plan {
                addresses: ["192.0.2.11".parse().unwrap()].into(),
                ..Plan::default()
            },
            DataPath::Dnat,
        );
        let replacement = Transaction::Replace(DataPath::Dnat, elements.clone());
        let table = Table::Holds(DataPath::FirstPacket, elements.clone());
        let change = table.transaction_to(DataPath::Dnat, &elements);
        assert_eq!(change.as_ref(), Some(&replacement));
        let table = Table::Holds(DataPath::Dnat, elements.clone());
        assert_eq!(table.transaction_to(DataPath::Dnat, &elements), None);
        let change = Table::Unknown.transaction_to(DataPath::Dnat, &elements);
        assert_eq!(change, Some(replacement));
    }

    #[test]
    fn a_node_is_ready_in_every_mode_of_kube_proxy() {
        let decision = Decision {
            plan: Plan {
                // Of a family whose forwarding matters only once it is used.
                addresses: ["2001:db8:1::11".parse().unwrap()].into(),
                ..Plan::default()
            },
            ..Decision::default()
        };
        for mode in [ProxyMode::Iptables, ProxyMode::Nftables, ProxyMode::Ipvs] {
            let ready = readiness(true, Some(mode), &decision);
            assert_eq!(ready, Readiness::Programmed, "{mode:?}");
        }
        let missing = readiness(true, None, &decision);
        assert_eq!(missing, Readiness::ServiceProxyMissing);
    }
}
