//! Has the LoadBalancers and the boxes follow the plan, while this controller leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use highwire_api::{
    ServiceKey,
    external::{
        ExternalLoadBalancer, LoadBalancer,
        ports::Move,
        spec::{HttpUpdater, RecordedBackend},
    },
};
use jiff::Timestamp;
use kube::runtime::events::EventType;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};

use super::{
    backend::backends,
    connection::Secrets,
    driver::{Driver, Order, Report},
    edges::Edges,
    objects::{Objects, Write, Written},
    plan::{Plan, Wanted, plan},
    snapshot::Snapshot,
    status::{self, Record},
};
use crate::{
    events::{Happened, ServiceEvent},
    facts::load_balancer::service_uid,
    leading::Role,
    metrics::{Metrics, Sending},
};

/// How long changes are collected.
const COLLECT: Duration = Duration::from_millis(50);

/// After a write that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Between two writes of one ExternalLoadBalancer's status, unless a box waits for it.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Reports of boxes that wait to be read.
const REPORTS: usize = 64;

/// See the module.
pub struct Keeper {
    /// What plans are made from.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What this controller is to do.
    pub role: watch::Receiver<Role>,
    /// Writes.
    pub objects: Objects,
    /// The Secrets of Highwire's namespace.
    pub secrets: Secrets,
    /// Whether nodes that load balancers should leave out get traffic all the same.
    pub ignore_exclude_label: bool,
    /// Sends Events.
    pub events: mpsc::Sender<ServiceEvent>,
    /// Counts.
    pub metrics: Metrics,
    /// Follows the agents on boxes.
    pub edges: Edges,
}

/// A box and its driver, which ends with this.
struct Driven {
    orders: watch::Sender<Order>,
    report: Report,
    /// When its status was last written.
    written: Option<Instant>,
    task: JoinSet<()>,
}

type Boxes = BTreeMap<String, Driven>;

impl Keeper {
    /// Keeps them until `stop`, then waits for the answers of the boxes.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let (reports, mut reported) = mpsc::channel(REPORTS);
        let mut boxes = Boxes::new();
        loop {
            let leads = *self.role.borrow_and_update() == Role::Lead;
            let mut next = None;
            if leads {
                let mut role = self.role.clone();
                tokio::select! {
                    biased;
                    // Whoever leads now decides. Without a sender this controller ends.
                    changed = role.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => break,
                    },
                    again = self.turn(&mut boxes, &reports) => next = again,
                }
            } else {
                boxes.clear();
            }
            tokio::select! {
                () = &mut stop => break,
                changed = self.role.changed() => if changed.is_err() {
                    break;
                },
                changed = self.snapshots.changed() => if changed.is_err() {
                    break;
                },
                Some(report) = reported.recv() => keep(&mut boxes, report),
                () = sleep(next.unwrap_or_default()), if next.is_some() => {}
            }
            sleep(COLLECT).await;
            while let Ok(report) = reported.try_recv() {
                keep(&mut boxes, report);
            }
        }
        // Nobody reads the reports any more.
        drop(reported);
        let tasks = boxes.into_values().map(|driven| driven.task);
        let tasks: Vec<_> = tasks.collect();
        for mut task in tasks {
            while task.join_next().await.is_some() {}
        }
    }

    /// Does everything there is to do now. Returns when to do so again.
    async fn turn(
        &mut self,
        boxes: &mut Boxes,
        reports: &mpsc::Sender<(String, Report)>,
    ) -> Option<Duration> {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let plan = plan(&snapshot, self.ignore_exclude_label);
        let mut again = None;
        let mut writes = load_balancers(&snapshot, &plan);
        for (name, external) in &snapshot.externals {
            let usage = plan.usage.get(name).copied().unwrap_or_default();
            let old = external.status.as_ref();
            let now = Timestamp::now();
            let status = match &external.spec.http_updater {
                None => {
                    let lease = snapshot.edges.get(name);
                    let (edge, lasts) = self.edges.state(name, lease, Instant::now());
                    again = again.into_iter().chain(lasts).min();
                    status::of_edge(external, usage, edge, now)
                }
                Some(updater) => {
                    let (order, wanted) = order(name, external, updater, &snapshot, &plan);
                    if !boxes.contains_key(name) {
                        let driven = self.drive(name, order.clone(), reports.clone());
                        boxes.insert(name.clone(), driven);
                    }
                    let Some(driven) = boxes.get_mut(name) else {
                        continue;
                    };
                    driven.order(order);
                    let record = Record::after(old, wanted, &driven.report.gone);
                    let is_awaited = !record.backends.is_subset(&status::known(old));
                    let status = status::external(external, record, usage, &driven.report, now);
                    let is_early = driven.written.is_some_and(|at| at.elapsed() < STATUS_PAUSE);
                    if is_early && !is_awaited && old != Some(&status) {
                        again = again.into_iter().chain([STATUS_PAUSE]).min();
                        continue;
                    }
                    if old != Some(&status) {
                        driven.written = Some(Instant::now());
                    }
                    status
                }
            };
            if old != Some(&status) {
                writes.push(Write::External(name.clone(), Box::new(status)));
            }
        }
        let is_driven = |name: &String| {
            let external = snapshot.externals.get(name);
            external.is_some_and(|it| it.spec.http_updater.is_some())
        };
        boxes.retain(|name, driven| is_driven(name) || driven.empty());
        writes.extend(statuses(&snapshot, &plan, boxes));
        for (write, written) in self.objects.carry_out(writes).await {
            match (written, write) {
                (Written::Failed, _) => again = again.into_iter().chain([RETRY]).min(),
                (Written::Done, Write::Apply(key, wanted)) => self.announce(&key, &wanted),
                (Written::Done, _) => {}
            }
        }
        again
    }

    fn drive(&self, name: &str, order: Order, reports: mpsc::Sender<(String, Report)>) -> Driven {
        let (orders, ordered) = watch::channel(order);
        let (secrets, metrics) = (self.secrets.clone(), self.metrics.clone());
        let driver = Driver::new(name.to_owned(), secrets, ordered, reports, metrics);
        let mut task = JoinSet::new();
        task.spawn(driver.run());
        Driven {
            orders,
            report: Report::default(),
            written: None,
            task,
        }
    }

    /// Says which ports of the box are others now.
    fn announce(&self, key: &ServiceKey, wanted: &Wanted) {
        for Move { port, from, to, .. } in &wanted.moved {
            let note = format!(
                "{port} is at port {to} of ExternalLoadBalancer {} now; {from} is not in its \
                 range any more",
                wanted.spec.external_load_balancer
            );
            let reason = "BoxPortChanged";
            let protocol = port.protocol.as_str().to_lowercase();
            let event = ServiceEvent {
                key: key.clone(),
                uid: wanted.service_uid.clone(),
                happened: Happened::new(EventType::Normal, reason, note),
                id: format!("moved-{}-{protocol}-{from}-{to}", port.port),
            };
            if self.events.try_send(event).is_err() {
                self.metrics.event(reason, Sending::Dropped);
            }
        }
    }
}

/// The LoadBalancers that should be others than they are.
fn load_balancers(snapshot: &Snapshot, plan: &Plan) -> Vec<Write> {
    let existing = |key| snapshot.load_balancers.get(key);
    let differing = plan
        .wanted
        .iter()
        .filter_map(|(key, wanted)| match existing(key) {
            // Of a Service that is gone; the next one is made when it is gone too.
            Some(object) if service_uid(object).is_some_and(|uid| uid != wanted.service_uid) => {
                Some(Write::Delete(key.clone(), object.metadata.uid.clone()))
            }
            Some(object) if service_uid(object).is_some() && object.spec == wanted.spec => None,
            _ => Some(Write::Apply(key.clone(), wanted.clone())),
        });
    let gone = plan.gone.iter().filter_map(|key| {
        // One that a person made is left alone.
        let object = existing(key).filter(|it| service_uid(it).is_some())?;
        Some(Write::Delete(key.clone(), object.metadata.uid.clone()))
    });
    differing.chain(gone).collect()
}

/// The statuses of LoadBalancers that should be others than they are.
fn statuses(snapshot: &Snapshot, plan: &Plan, boxes: &Boxes) -> Vec<Write> {
    let now = Timestamp::now();
    let differing = plan.wanted.iter().filter_map(|(key, wanted)| {
        let object = of_service(snapshot, key, wanted)?;
        let name = &object.spec.external_load_balancer;
        let external = snapshot.externals.get(name).map(AsRef::as_ref);
        let report = boxes.get(name).map(|driven| &driven.report);
        let status = status::load_balancer(key, object, wanted, external, report, now);
        let differs = object.status.as_ref() != Some(&status);
        differs.then(|| Write::Status(key.clone(), Box::new(status)))
    });
    differing.collect()
}

/// The LoadBalancer of a Service, if it is there and was made for that Service.
fn of_service<'a>(
    snapshot: &'a Snapshot,
    key: &ServiceKey,
    wanted: &Wanted,
) -> Option<&'a LoadBalancer> {
    let object = snapshot.load_balancers.get(key)?;
    (service_uid(object) == Some(&wanted.service_uid)).then_some(object)
}

/// What a box should have according to the LoadBalancers that are there. What its status does
/// not have yet is only wanted: it is sent once it is recorded.
fn order(
    name: &str,
    external: &ExternalLoadBalancer,
    settings: &HttpUpdater,
    snapshot: &Snapshot,
    plan: &Plan,
) -> (Order, BTreeSet<RecordedBackend>) {
    let objects = plan.wanted.iter().filter_map(|(key, wanted)| {
        let object = of_service(snapshot, key, wanted)?;
        (object.spec.external_load_balancer == name).then_some((key, &object.spec))
    });
    let backends = objects.flat_map(|(key, spec)| backends(key, spec, &settings.url));
    let backends: BTreeMap<_, _> = backends.collect();
    let wanted: BTreeSet<_> = backends.keys().cloned().collect();
    let known = status::known(external.status.as_ref());
    let order = Order {
        deleted: known.difference(&wanted).cloned().collect(),
        backends: backends
            .into_iter()
            .filter(|(it, _)| known.contains(it))
            .collect(),
        address: external.spec.addresses.first().cloned().unwrap_or_default(),
        settings: settings.clone(),
    };
    (order, wanted)
}

fn keep(boxes: &mut Boxes, (name, report): (String, Report)) {
    if let Some(driven) = boxes.get_mut(&name) {
        driven.report = report;
    }
}

impl Driven {
    fn order(&self, order: Order) {
        self.orders.send_if_modified(|known| {
            let changed = *known != order;
            *known = order;
            changed
        });
    }

    /// Its ExternalLoadBalancer is gone: has everything deleted there. Says whether there is
    /// still something.
    fn empty(&self) -> bool {
        self.orders.send_if_modified(|known| {
            let backends = std::mem::take(&mut known.backends);
            known.deleted.extend(backends.keys().cloned());
            !backends.is_empty()
        });
        let order = self.orders.borrow();
        !order.deleted.is_subset(&self.report.gone)
    }
}
