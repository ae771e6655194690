//! The agent's loop: takes in news, decides when a fact has changed, and has the kernel
//! follow.

use std::{
    collections::BTreeSet,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use highwire_api::{ServiceKey, ServiceSpec};
use highwire_runtime::heartbeat::Heartbeat;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    decide::{Decision, Readiness, decide},
    explain::{Known, WantedTable, node::explain, route::Question},
    facts::{
        Facts, News, Sources,
        endpoints::ServicePortName,
        host,
        service_proxy::{self, Syncs, entrances::missing},
    },
    metrics::{Metrics, count},
    report::{
        Report,
        awaited::{Awaited, Now},
        first_slices::FirstSlices,
    },
    table::{
        DataPath, Elements, KernelTable, Nft,
        kernel_table::Failure,
        left_out::{LeftOut, culprits},
        notifications::TableEvent,
    },
    udp::Frontends,
};

/// What the loop waits for.
#[derive(Debug)]
pub enum Input {
    /// From a source of facts.
    News(News),
    /// Our table was changed, by us or by another program.
    Table(TableEvent),
}

/// A burst is over when nothing has come for this long …
const QUIET: Duration = Duration::from_millis(2);
/// … or, so that a steady stream cannot starve the kernel, after this long.
const LONGEST_BURST: Duration = Duration::from_millis(40);

/// The owner of everything the agent knows.
#[derive(Debug)]
pub struct AgentLoop {
    node_name: String,
    metrics: Metrics,
    heartbeat: Heartbeat,
    questions: mpsc::Receiver<Question>,
    /// The state of the node.
    report: Option<Report>,
    /// Whether it may differ from what was reported.
    is_news: bool,
    awaited: Awaited,
    first_slices: FirstSlices,
    /// A question to kube-proxy about its syncs, with the time at which it was asked. The
    /// answer may take a while.
    asked: Option<JoinHandle<(Option<Syncs>, Now)>>,
    reports: watch::Sender<Option<Report>>,
    udp: watch::Sender<Option<Frontends>>,
    sources: Sources,
    table: KernelTable,
    left_out: LeftOut,
}

impl AgentLoop {
    /// A loop that knows nothing yet.
    #[must_use]
    pub fn new(
        config: &Config,
        nft: Nft,
        metrics: Metrics,
        heartbeat: Heartbeat,
        reports: watch::Sender<Option<Report>>,
        udp: watch::Sender<Option<Frontends>>,
        questions: mpsc::Receiver<Question>,
    ) -> Self {
        let policy = config.policy.clone();
        Self {
            sources: Sources::new(config.node_name.clone(), policy, config.listener_hold_down),
            table: KernelTable::new(nft, metrics.clone()),
            node_name: config.node_name.clone(),
            metrics,
            heartbeat,
            questions,
            report: None,
            is_news: false,
            awaited: Awaited::default(),
            first_slices: FirstSlices::default(),
            asked: None,
            reports,
            udp,
            left_out: LeftOut::default(),
        }
    }

    /// Runs until the senders of inputs are gone.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut tick = interval(host::PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changed = false;
        loop {
            let due = self.table.due();
            let pause = self.pause(Instant::now());
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => {
                        changed |= self.absorb(input);
                        changed |= self.absorb_burst(&mut inputs).await;
                    }
                    None => return,
                },
                Some(question) = self.questions.recv() => {
                    // Who asked may have given up.
                    let _ = question.send(self.known());
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                _ = tick.tick() => {}
            }
            self.heartbeat.beat();
            changed |= self.review(Instant::now());
            if changed || self.table.needs_care() {
                changed = !self.reconcile().await;
            }
            self.ask_service_proxy().await;
            let follows = !changed && !self.table.has_failed();
            self.publish(follows);
        }
    }

    /// How long until what is awaited is to be looked at; `None` if nothing is.
    fn pause(&self, now: Instant) -> Option<Duration> {
        let pauses = [self.awaited.pause(now), self.first_slices.pause(now)];
        pauses.into_iter().flatten().min()
    }

    async fn absorb_burst(&mut self, inputs: &mut mpsc::Receiver<Input>) -> bool {
        let (start, mut changed) = (Instant::now(), false);
        while start.elapsed() < LONGEST_BURST {
            match timeout(QUIET, inputs.recv()).await {
                Ok(Some(input)) => changed |= self.absorb(input),
                Ok(None) | Err(_) => break,
            }
        }
        changed
    }

    /// Says whether a fact has changed.
    fn absorb(&mut self, input: Input) -> bool {
        match input {
            Input::News(news) => self.sources.absorb(news),
            Input::Table(event) => {
                self.table.notice(event, Instant::now());
                false
            }
        }
    }

    /// Takes in what time has changed. Says whether a fact has.
    fn review(&mut self, now: Instant) -> bool {
        let Some(services) = self.sources.services().known() else {
            return false;
        };
        let spec = |key: &ServiceKey| {
            let ours = services.get(&key.to_string())?.ours.as_ref();
            ours.map(|ours| &ours.spec)
        };
        let may_return = self.left_out.review(spec, now);
        self.sources.read_host(now) || may_return
    }

    /// Brings the kernel to what is decided. Does nothing, and says so, until all facts are
    /// known.
    async fn reconcile(&mut self) -> bool {
        let left_out = self.left_out.words().clone();
        let Some(facts) = self.sources.facts(&left_out) else {
            return false;
        };
        let last = self.report.take();
        let served = last.as_ref().map(|last| &last.decision.served);
        let (table, left_out) = (&mut self.table, &mut self.left_out);
        let applied = apply(table, left_out, &facts, served, &self.metrics).await;
        let node_uid = facts.node.uid.clone();
        let proxy_mode = facts.proxy.mode;
        let report = match applied {
            Ok(decision) => {
                // Only now: a flow that is deleted before would be tracked again as it was.
                send_change(
                    &self.udp,
                    Frontends::of(&decision.plan, &decision.own_addresses),
                );
                let services = self.sources.services();
                let (revision, observed) = (services.revision(), services.observed());
                self.sources.served_beside(&decision.beside);
                let decision = Arc::new(decision);
                let now = Now::read();
                self.awaited.plan(decision.clone(), observed, now);
                self.first_slices
                    .plan(decision.clone(), observed, now.instant);
                Report {
                    node_uid,
                    decision,
                    revision,
                    observed,
                    proxy_mode,
                    awaited: 0,
                }
            }
            Err(failure) => {
                let still = |kept: &Decision| Readiness::of(&facts, &kept.plan, &kept.conflicts);
                let report = Report::behind(last, still, &failure);
                Report {
                    node_uid,
                    proxy_mode,
                    ..report
                }
            }
        };
        self.report = Some(report);
        self.is_news = true;
        true
    }

    /// What there is to explain; `None` until something was programmed.
    fn known(&self) -> Option<Known> {
        let report = self.report.as_ref()?;
        let facts = self.sources.facts(self.left_out.words())?;
        let path = DataPath::beside(facts.proxy.mode);
        Some(Known {
            explanation: explain(&self.node_name, facts.node, facts.services, report),
            wanted: WantedTable {
                elements: Elements::of(&report.decision.plan, path),
                structure: self.table.structure_of(path).cloned(),
            },
        })
    }

    /// Asks the kernel whether kube-proxy has what is awaited, and kube-proxy about its syncs.
    async fn ask_service_proxy(&mut self) {
        let entrances = self.awaited.entrances();
        let mode = self.report.as_ref().and_then(|report| report.proxy_mode);
        if entrances.is_empty() {
            return;
        }
        let Ok(missing) = spawn_blocking(move || missing(mode, entrances)).await else {
            return;
        };
        self.awaited.still_missing(&missing);
        if let Some(asked) = self.asked.take_if(|asked| asked.is_finished()) {
            let (syncs, then) = asked.await.unwrap_or_else(|_| (None, Now::read()));
            for entrance in self.awaited.heard(syncs.as_ref(), then) {
                let ServicePortName { service, port } = &entrance.port_name;
                let at = entrance.socket;
                info!(%service, %port, %at, "advertised, though kube-proxy shows no endpoint of it");
            }
        }
        if self.asked.is_none() && self.awaited.is_to_be_asked(Instant::now()) {
            let then = Now::read();
            self.asked = Some(tokio::spawn(
                async move { (service_proxy::syncs().await, then) },
            ));
        }
    }

    /// Reports the state of the node. As long as kube-proxy does not follow, only what
    /// cannot wait for it. `follows` says whether the kernel has all that was read.
    fn publish(&mut self, follows: bool) {
        for service in self.first_slices.give_up(Instant::now()) {
            info!(%service, "advertised, though there is no EndpointSlice of it");
        }
        let Some(report) = &mut self.report else {
            return;
        };
        let (observed, awaited) = (report.observed, report.awaited);
        if follows {
            let read = self.sources.services().observed();
            report.observed = self
                .awaited
                .observed(read)
                .min(self.first_slices.observed(read));
        }
        report.awaited = self.awaited.count() + self.first_slices.count();
        // Now, and not with the report, which may wait for just that.
        self.metrics.awaited.set(count(report.awaited));
        self.is_news |= (report.observed, report.awaited) != (observed, awaited);
        if !mem::take(&mut self.is_news) {
            return;
        }
        let metrics = &self.metrics;
        self.reports.send_if_modified(|reported| {
            if let Some(reported) = reported.as_ref() {
                let waits = report.can_wait_after(reported);
                if waits || report == reported {
                    self.is_news = waits;
                    return false;
                }
            }
            report.show(metrics);
            report.log_changes(reported.as_ref());
            *reported = Some(report.clone());
            true
        });
    }
}

/// Decides and has the table follow. Services that nft refuses are found and left out.
/// `served` are those that it had before.
async fn apply(
    table: &mut KernelTable,
    left_out: &mut LeftOut,
    facts: &Facts<'_>,
    served: Option<&BTreeSet<ServiceKey>>,
    metrics: &Metrics,
) -> Result<Decision, Failure> {
    let path = DataPath::beside(facts.proxy.mode);
    let began = Instant::now();
    let decision = decide(facts);
    metrics.decided(began.elapsed());
    let tried = table.is_due();
    let Err(failure) = table.bring_to(path, &decision.plan).await else {
        return Ok(decision);
    };
    if !(failure.refused && tried) {
        return Err(failure);
    }
    let refused = refused_by_nft(table, path, facts, &decision, served).await;
    if refused.is_empty() {
        return Err(failure);
    }
    for spec in refused {
        warn!(service = %spec.key, "left out, because nft refuses it: {}", failure.message);
        left_out.add(spec, &failure.message, Instant::now());
    }
    let decision = decide(&Facts {
        left_out: left_out.words(),
        ..*facts
    });
    table.retry_now();
    table.bring_to(path, &decision.plan).await?;
    Ok(decision)
}

/// The Services of this decision that nft refuses. Those that were `served` before are
/// innocent at first.
async fn refused_by_nft<'a>(
    table: &KernelTable,
    path: DataPath,
    facts: &Facts<'a>,
    decision: &Decision,
    served: Option<&BTreeSet<ServiceKey>>,
) -> Vec<&'a ServiceSpec> {
    let now = decision.served.iter().cloned();
    let was_served = |key: &ServiceKey| served.is_some_and(|served| served.contains(key));
    let (before, others) = now.partition(was_served);
    let specs = || {
        let ours = facts.services.values().filter_map(|it| it.ours.as_ref());
        ours.map(|ours| &ours.spec)
    };
    let accepts = async |some: &BTreeSet<ServiceKey>| {
        let rest = specs().filter(|spec| !some.contains(&spec.key));
        let left_out = rest.map(|spec| (spec.key.clone(), String::new())).collect();
        let facts = Facts {
            left_out: &left_out,
            ..*facts
        };
        let wanted = Elements::of(&decide(&facts).plan, path);
        table.accepts(path, wanted).await
    };
    let refused = culprits(before, others, accepts).await.unwrap_or_default();
    specs().filter(|spec| refused.contains(&spec.key)).collect()
}

fn send_change<T: PartialEq>(sender: &watch::Sender<Option<T>>, now: T) {
    sender.send_if_modified(|known| {
        let now = Some(now);
        let changed = *known != now;
        *known = now;
        changed
    });
}
