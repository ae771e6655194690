//! The loop of the agent on a box: takes in news, decides, and has the kernel follow.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use highwire_api::{
    ServiceKey,
    external::{ExternalLoadBalancer, LoadBalancer, Trouble},
};
use highwire_runtime::{heartbeat::Heartbeat, mirror::Mirror};
use kube::{core::DeserializeGuard, runtime::watcher::Event};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::info;

use super::{
    asked::Asked,
    decide::{BoxDecision, BoxFacts, BoxPolicy, Verdict, decide},
    explain::explain as box_explanation,
    report::{Wanted, condition},
};
use crate::{
    decide::Readiness,
    explain::{self, WantedTable, route::Question},
    facts::{addresses::HostAddress, host::Host, host::PERIOD},
    metrics::{Metrics, count},
    table::{DataPath, Elements, KernelTable, kernel_table::Failure, notifications::TableEvent},
    udp::Frontends,
};

/// A burst is over when nothing has come for this long …
const QUIET: Duration = Duration::from_millis(5);
/// … or after this long.
const LONGEST_BURST: Duration = Duration::from_millis(50);

/// What the loop waits for.
pub(super) enum Input {
    /// The box's own object; `None` while there is none.
    External(Option<Box<ExternalLoadBalancer>>),
    /// A LoadBalancer, of any box.
    LoadBalancer(Box<Event<DeserializeGuard<LoadBalancer>>>),
    /// The host's addresses are these.
    Addresses(Vec<HostAddress>),
    /// Our table was changed, by us or by another program.
    Table(TableEvent),
}

/// The owner of everything the agent knows.
pub(super) struct EdgeLoop {
    /// The ExternalLoadBalancer.
    pub(super) name: String,
    /// What the admin has decided.
    pub(super) policy: BoxPolicy,
    /// The kernel's table.
    pub(super) table: KernelTable,
    /// Sockets and sysctls.
    pub(super) host: Host,
    /// What people want to know.
    pub(super) questions: mpsc::Receiver<Question>,
    /// What the kernel was last brought to, or should be.
    pub(super) decision: Option<BoxDecision>,
    /// What LoadBalancers should say.
    pub(super) wanted: watch::Sender<Wanted>,
    /// Where the box forwards UDP.
    pub(super) udp: watch::Sender<Option<Frontends>>,
    /// Why the box is not ready; `None` if it is.
    pub(super) problem: watch::Sender<Option<String>>,
    /// Counts.
    pub(super) metrics: Metrics,
    /// Shows that the loop turns.
    pub(super) heartbeat: Heartbeat,
}

/// What is known of the cluster and the host.
#[derive(Default)]
struct Known {
    asked: Mirror<Asked>,
    /// The addresses of the box's own object; `None` until it was looked for.
    advertised: Option<Option<BTreeSet<IpAddr>>>,
    addresses: Option<Vec<HostAddress>>,
    /// Counts the changes of what Services ask for.
    revision: u64,
}

impl Known {
    /// Takes in an input. Says whether something has changed.
    fn absorb(&mut self, input: Input, name: &str, table: &mut KernelTable) -> bool {
        match input {
            Input::External(object) => {
                let now = object.map(|object| {
                    let addresses = object.spec.addresses.iter();
                    addresses.filter_map(|it| it.parse().ok()).collect()
                });
                let changed = self.advertised != Some(now.clone());
                self.advertised = Some(now);
                changed
            }
            Input::LoadBalancer(event) => {
                let changed = self.asked.absorb(*event, |object| Asked::of(object, name));
                self.revision += u64::from(changed);
                changed
            }
            Input::Addresses(addresses) => {
                let changed = self.addresses.as_ref() != Some(&addresses);
                self.addresses = Some(addresses);
                changed
            }
            Input::Table(event) => {
                table.notice(event, Instant::now());
                false
            }
        }
    }

    fn asked(&self) -> Option<BTreeMap<ServiceKey, &Asked>> {
        let known = self.asked.known()?.iter();
        Some(
            known
                .filter_map(|(key, asked)| Some((key.parse().ok()?, asked)))
                .collect(),
        )
    }
}

impl EdgeLoop {
    /// Runs until the senders of inputs are gone.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = Known::default();
        let mut changed = false;
        loop {
            let due = self.table.due();
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => {
                        changed |= known.absorb(input, &self.name, &mut self.table);
                        changed |= self.absorb_burst(&mut known, &mut inputs).await;
                    }
                    None => return,
                },
                Some(question) = self.questions.recv() => {
                    // Who asked may have given up.
                    let _ = question.send(self.known(&known));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                _ = tick.tick() => {}
            }
            self.heartbeat.beat();
            changed |= self.host.read_if_due(known.revision, Instant::now());
            if changed || self.table.needs_care() {
                changed = !self.reconcile(&known).await;
            }
        }
    }

    async fn absorb_burst(
        &mut self,
        known: &mut Known,
        inputs: &mut mpsc::Receiver<Input>,
    ) -> bool {
        let (start, mut changed) = (Instant::now(), false);
        while start.elapsed() < LONGEST_BURST {
            match timeout(QUIET, inputs.recv()).await {
                Ok(Some(input)) => changed |= known.absorb(input, &self.name, &mut self.table),
                Ok(None) | Err(_) => break,
            }
        }
        changed
    }

    /// Decides and has the kernel follow. Says whether it could.
    async fn reconcile(&mut self, known: &Known) -> bool {
        let (Some(asked), Some(advertised), Some(addresses)) =
            (known.asked(), &known.advertised, &known.addresses)
        else {
            // What is there stays until all is known.
            return true;
        };
        let services = asked
            .iter()
            .map(|(key, asked)| (key.clone(), asked.spec.clone()));
        let services: BTreeMap<_, _> = services.collect();
        let Some(advertised) = advertised else {
            let message = format!("there is no ExternalLoadBalancer {}; create it", self.name);
            self.problem.send_replace(Some(message));
            let decision = BoxDecision::default();
            let followed = self.follow(&decision).await;
            self.decision = Some(decision);
            return followed.is_ok();
        };
        let began = Instant::now();
        let decision = decide(&BoxFacts {
            services: &services,
            advertised,
            addresses,
            listeners: &self.host.listeners,
            sysctls: &self.host.sysctls,
            policy: &self.policy,
        });
        self.metrics.decided(began.elapsed());
        let followed = self.follow(&decision).await;
        let wanted = asked.into_iter().filter_map(|(key, asked)| {
            let failed = || {
                (
                    Trouble::EdgeFailing,
                    followed.as_ref().err().cloned().unwrap_or_default(),
                )
            };
            let trouble = match &decision.verdicts[&key] {
                Verdict::Refused(trouble, message) => Some((*trouble, message.clone())),
                Verdict::Served => followed.is_err().then(failed),
            };
            let trouble = trouble.as_ref();
            let trouble = trouble.map(|(trouble, message)| (trouble.as_str(), message.as_str()));
            let condition = condition(asked.stated.as_ref(), asked.generation, trouble)?;
            Some((key, condition))
        });
        self.wanted.send_replace(wanted.collect());
        self.problem.send_replace(followed.as_ref().err().cloned());
        self.decision = Some(decision);
        followed.is_ok()
    }

    /// What there is to explain; `None` until something was decided.
    fn known(&self, known: &Known) -> Option<explain::Known> {
        let decision = self.decision.as_ref()?;
        let path = DataPath::Direct;
        let problem = self.problem.borrow();
        Some(explain::Known {
            explanation: box_explanation(&self.name, &known.asked()?, decision, problem.as_deref()),
            wanted: WantedTable {
                elements: Elements::of(&decision.plan, path),
                structure: self.table.structure_of(path).cloned(),
            },
        })
    }

    /// Has the kernel hold what was decided; else why not.
    async fn follow(&mut self, decision: &BoxDecision) -> Result<(), String> {
        let path = DataPath::Direct;
        let result = self.table.bring_to(path, &decision.plan).await;
        let served = decision.verdicts.values();
        let served = served
            .filter(|verdict| **verdict == Verdict::Served)
            .count();
        let failed = |failure: &Failure| Readiness::ApplyFailed(failure.message.clone());
        let readiness = result.as_ref().err().map(failed);
        self.metrics
            .show_readiness(&readiness.unwrap_or(Readiness::Programmed));
        match result {
            Ok(()) => {
                if self.metrics.services.get() != count(served) {
                    info!(services = served, "the box forwards them");
                }
                self.metrics.services.set(count(served));
                self.metrics.ports.set(count(decision.plan.forwards.len()));
                let frontends = Frontends::of(&decision.plan, &decision.plan.addresses);
                self.udp.send_replace(Some(frontends));
                Ok(())
            }
            Err(failure) => Err(failure.message),
        }
    }
}
