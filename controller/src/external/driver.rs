//! Sends one box what it should have, as long as this controller leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    future,
    time::{Duration, Instant},
};

use highwire_api::{
    Protocol,
    external::{
        Trouble,
        spec::{Check, HttpUpdater, RecordedBackend},
    },
};
use jiff::Timestamp;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, sleep_until, timeout_at},
};
use tracing::{info, warn};

use super::{
    backend::{Backend, removal},
    connection::{Connection, Secrets},
    schedule::{Request, Schedule},
    updater::Method,
};
use crate::metrics::Metrics;

/// How many requests a box gets at once, each about another backend.
const REQUESTS: usize = 4;

/// Between two attempts to connect to a port of the box.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// What one box should have.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// How it is driven.
    pub settings: HttpUpdater,
    /// Where clients reach it first.
    pub address: String,
    /// What it should have.
    pub backends: BTreeMap<RecordedBackend, Backend>,
    /// What it should not have any more.
    pub deleted: BTreeSet<RecordedBackend>,
}

/// What one box has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The backends that it has as they are wanted.
    pub taken: BTreeSet<RecordedBackend>,
    /// Those that it has not, because the last request failed, and why.
    pub failing: BTreeMap<RecordedBackend, (Trouble, String)>,
    /// Those that it has deleted.
    pub gone: BTreeSet<RecordedBackend>,
    /// When it had last taken everything.
    pub synced: Option<Timestamp>,
}

type Ended = (Request, Result<(), (Trouble, String)>);

/// The driver of one box.
pub struct Driver {
    name: String,
    secrets: Secrets,
    orders: watch::Receiver<Order>,
    reports: mpsc::Sender<(String, Report)>,
    reported: Report,
    schedule: Schedule,
    connection: Connection,
    report: Report,
    metrics: Metrics,
}

impl Driver {
    /// One that has sent nothing yet. `secrets` are those of Highwire's namespace.
    #[must_use]
    pub fn new(
        name: String,
        secrets: Secrets,
        mut orders: watch::Receiver<Order>,
        reports: mpsc::Sender<(String, Report)>,
        metrics: Metrics,
    ) -> Self {
        let settings = orders.borrow_and_update().settings.clone();
        orders.mark_changed();
        Self {
            schedule: Schedule::new(Duration::from_secs(settings.resync_seconds.into())),
            connection: Connection::new(settings, secrets.clone()),
            report: Report::default(),
            reported: Report::default(),
            metrics,
            name,
            secrets,
            orders,
            reports,
        }
    }

    /// Sends what is due until the sender of orders is gone; then waits for the answers to
    /// what was sent.
    pub async fn run(mut self) {
        let mut requests = JoinSet::new();
        loop {
            let wake = self.schedule.wake(Instant::now());
            let wake = wake.filter(|_| requests.len() < REQUESTS);
            tokio::select! {
                changed = self.orders.changed() => match changed {
                    Ok(()) => self.take_order(),
                    Err(_) => break,
                },
                Some(ended) = requests.join_next() => self.ended(ended),
                () = async { match wake {
                    Some(at) => sleep_until(at.into()).await,
                    None => future::pending().await,
                }} => {}
            }
            while requests.len() < REQUESTS
                && let Some(request) = self.schedule.next(Instant::now())
            {
                let (connection, order) = (self.connection.clone(), self.orders.borrow());
                let check = order.settings.check;
                let address = (check == Check::Connect).then(|| order.address.clone());
                requests.spawn(carry_out(connection, request, address));
            }
            self.publish().await;
        }
        while let Some(ended) = requests.join_next().await {
            self.ended(ended);
        }
        self.publish().await;
    }

    fn take_order(&mut self) {
        let order = self.orders.borrow_and_update().clone();
        if order.settings != *self.connection.settings() {
            self.connection = Connection::new(order.settings.clone(), self.secrets.clone());
            let resync = Duration::from_secs(order.settings.resync_seconds.into());
            self.schedule.resync_after(resync);
            self.schedule.retry_now();
        }
        let wanted = |name: &RecordedBackend| order.backends.contains_key(name);
        self.report
            .gone
            .retain(|name| order.deleted.contains(name) && !wanted(name));
        for name in order
            .deleted
            .iter()
            .filter(|it| !self.report.gone.contains(*it))
        {
            self.schedule.forget(name.clone());
        }
        self.schedule.want(order.backends, Instant::now());
        let schedule = &self.schedule;
        self.report.failing.retain(|name, _| schedule.knows(name));
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        // Only a panic has no result; the next leader sends it again.
        let Ok((request, result)) = ended else {
            return;
        };
        let Request { name, backend } = request;
        let backend_name = &name.backend_name;
        match &result {
            Ok(()) => {
                info!(
                    external = self.name,
                    "{} {backend_name}",
                    match backend {
                        Some(_) => "the box has taken",
                        None => "the box has deleted",
                    }
                );
                self.report.failing.remove(&name);
            }
            Err((trouble, message)) => {
                let failure = (*trouble, message.clone());
                let known = self.report.failing.insert(name.clone(), failure.clone());
                if known.as_ref() != Some(&failure) {
                    warn!(
                        external = self.name,
                        "{backend_name}: {message}; will retry"
                    );
                }
            }
        }
        let is_taken = result.is_ok();
        self.metrics.box_request(method(backend.as_ref()), is_taken);
        let jitter = f64::from(Timestamp::now().subsec_nanosecond()) / 1e9;
        self.schedule.ended(&name, is_taken, jitter, Instant::now());
        if is_taken && backend.is_none() && !self.schedule.knows(&name) {
            self.report.gone.insert(name);
        }
        if is_taken && self.schedule.is_done() {
            self.report.synced = Some(Timestamp::now());
        }
    }

    async fn publish(&mut self) {
        let taken = {
            let order = self.orders.borrow();
            let taken = order.backends.keys().filter(|name| self.schedule.has(name));
            taken.cloned().collect()
        };
        self.report.taken = taken;
        if self.report != self.reported {
            self.reported.clone_from(&self.report);
            // Without a receiver nobody wants to know.
            let _ = self
                .reports
                .send((self.name.clone(), self.report.clone()))
                .await;
        }
    }
}

/// What makes the backend so.
fn method(backend: Option<&Backend>) -> Method {
    match backend {
        Some(_) => Method::Post,
        None => Method::Delete,
    }
}

/// Carries out a request. A backend counts as taken once its port takes connections at
/// `address`, if that is to be made sure.
async fn carry_out(connection: Connection, request: Request, address: Option<String>) -> Ended {
    let RecordedBackend { backend_name, url } = &request.name;
    let backend = request.backend.as_ref();
    let body = match backend {
        Some(backend) => backend.body(backend_name),
        None => removal(backend_name),
    };
    let sent = connection.send(url, method(backend), &body).await;
    let result = match (sent, backend, address) {
        (Ok(()), Some(backend), Some(address)) if backend.protocol == Protocol::Tcp => {
            let limit = Duration::from_secs(connection.settings().timeout_seconds.into());
            listens(&address, backend.port.get(), limit).await
        }
        (sent, ..) => sent.map_err(|message| (Trouble::UpdaterFailing, message)),
    };
    (request, result)
}

/// Waits until the port takes a connection.
async fn listens(address: &str, port: u16, limit: Duration) -> Result<(), (Trouble, String)> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut why = "no answer".to_owned();
    while tokio::time::Instant::now() < deadline {
        match timeout_at(deadline, TcpStream::connect((address, port))).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => break,
        }
        sleep(CHECK_INTERVAL).await;
    }
    let message = format!(
        "the updater took it, but port {port} of {address} takes no connections ({why}); does \
         the box load what its updater writes? If only the controller cannot reach that port, \
         set spec.httpUpdater.check to None"
    );
    Err((Trouble::NotListening, message))
}
