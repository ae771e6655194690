//! `/healthz`, `/readyz`, `/startz` and `/metrics`, and what only this host may ask
//! ([`crate::local`]).
//!
//! Any host in the network may connect, so each can use little: one request per
//! connection, few connections, short deadlines.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::future::{BoxFuture, select_all};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus::{Encoder, Registry, TextEncoder};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::{sleep, timeout},
};

use crate::{heartbeat::Heartbeat, local, printable::printable};

/// An event loop without a heartbeat for this long counts as stuck.
const STUCK: Duration = Duration::from_secs(60);
/// Beyond so many connections the oldest is closed. A probe needs milliseconds, so it
/// gets through unless somebody opens them faster than that.
const MOST_CONNECTIONS: usize = 64;
/// The deadline for the head of a request …
const HEAD_TIME: Duration = Duration::from_secs(2);
/// … and for the whole exchange, with a slow client too.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long `/startz` waits at most, within the time of a request …
const START_TIME: Duration = Duration::from_secs(8);
/// … and how often it asks whether the program is ready.
const START_POLL: Duration = Duration::from_millis(20);
/// The most bytes of a head; hyper wants no less.
const HEAD_BYTES: usize = 8192;
/// The pause after a failed accept, for example without a free file descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// The texts of `/readyz`; empty if the program is ready.
pub type Problems = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Brings the metrics up to date, just before they are served.
pub type Refresh = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Why the admin server does not run.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}; choose another --port or --listen-address")]
pub struct AdminError {
    /// The address asked for.
    pub address: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

/// Where to listen: at these addresses, and always at the loopback addresses of their
/// families (of both families if there are none).
#[must_use]
pub fn sockets(addresses: &[IpAddr], port: u16) -> BTreeSet<SocketAddr> {
    let loopbacks = [
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    ];
    let used = |loopback: &IpAddr| {
        let mut own = addresses.iter();
        addresses.is_empty() || own.any(|ip| ip.is_ipv4() == loopback.is_ipv4())
    };
    // An unspecified address has its family's loopback already.
    let has_all = |loopback: &IpAddr| {
        let mut own = addresses.iter();
        own.any(|ip| ip.is_unspecified() && ip.is_ipv4() == loopback.is_ipv4())
    };
    let loopbacks = loopbacks.into_iter().filter(|ip| used(ip) && !has_all(ip));
    let all = addresses.iter().copied().chain(loopbacks);
    all.map(|ip| SocketAddr::new(ip, port)).collect()
}

/// The admin server, bound but not yet serving.
pub struct Admin {
    listeners: Vec<TcpListener>,
    refresh: Refresh,
    local: Router,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Admin");
        shown
            .field("listeners", &self.listeners)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// Binds each of the addresses; `sockets` must not be empty. A family that this host
    /// does not have is left out, unless it is the only one.
    ///
    /// # Errors
    /// If one of them cannot be bound.
    pub async fn bind(sockets: &BTreeSet<SocketAddr>) -> Result<Self, AdminError> {
        let mut listeners = Vec::new();
        let mut missing = None;
        for address in sockets.iter().copied() {
            match TcpListener::bind(address).await {
                Ok(listener) => listeners.push(listener),
                Err(source) => {
                    let no_family = source.kind() == io::ErrorKind::AddrNotAvailable
                        && address.ip().is_loopback();
                    let error = AdminError { address, source };
                    if !no_family {
                        return Err(error);
                    }
                    missing = Some(error);
                }
            }
        }
        match missing {
            Some(error) if listeners.is_empty() => Err(error),
            _ => Ok(Self {
                listeners,
                refresh: Arc::new(|| Box::pin(async {})),
                local: Router::new(),
            }),
        }
    }

    /// Runs this before each answer of `/metrics`.
    #[must_use]
    pub fn refreshed_by(mut self, refresh: Refresh) -> Self {
        self.refresh = refresh;
        self
    }

    /// Answers these too, to clients on this host ([`crate::local`]).
    #[must_use]
    pub fn answering_locally(mut self, routes: Router) -> Self {
        self.local = routes;
        self
    }

    /// Does not return. Serves `/healthz` by the loop's heartbeat, `/readyz` by `problems`,
    /// `/startz` by both, `/metrics` from the registry.
    pub async fn serve(self, registry: Registry, heartbeat: Heartbeat, problems: Problems) {
        let refresh = self.refresh;
        let gathered = move || async move {
            refresh().await;
            metrics(&registry)
        };
        let (alive, wanted) = (heartbeat.clone(), problems.clone());
        let public = Router::new()
            .route("/startz", get(move || startz(alive, wanted)))
            .route("/healthz", get(move || async move { healthz(&heartbeat) }))
            .route("/readyz", get(move || async move { readyz(&problems()) }))
            .route("/metrics", get(gathered));
        let local = public.clone().merge(local::guarded(self.local));
        let public = public.fallback(local::elsewhere);
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let next = self.listeners.iter().map(|one| Box::pin(one.accept()));
            let (accepted, ..) = select_all(next).await;
            let Ok((stream, peer)) = accepted else {
                sleep(PAUSE).await;
                continue;
            };
            open.retain(|connection| !connection.is_finished());
            if open.len() >= MOST_CONNECTIONS {
                open.pop_front().inspect(AbortHandle::abort);
            }
            let router = if local::is_local(peer) {
                local.clone()
            } else {
                public.clone()
            };
            let answering = tokio::spawn(timeout(REQUEST_TIME, answer(stream, router)));
            open.push_back(answering.abort_handle());
        }
    }
}

/// Answers one request. Errors concern only the client.
async fn answer(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false);
    let service = TowerToHyperService::new(router);
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

fn healthz(heartbeat: &Heartbeat) -> Response {
    let age = heartbeat.age();
    if age < STUCK {
        "ok\n".into_response()
    } else {
        let text = format!("the event loop is stuck for {} s\n", age.as_secs());
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}

/// For a startup probe: `/healthz`, but answered once the program is ready, so that the
/// readiness probes that follow do not begin with a failure. One that is still not ready
/// after [`START_TIME`] has started all the same: to restart it would not help.
async fn startz(heartbeat: Heartbeat, problems: Problems) -> Response {
    let ready = async {
        while !problems().is_empty() {
            sleep(START_POLL).await;
        }
    };
    let _ = timeout(START_TIME, ready).await;
    healthz(&heartbeat)
}

fn readyz(problems: &[String]) -> Response {
    if problems.is_empty() {
        "ok\n".into_response()
    } else {
        let lines = problems.iter().map(|problem| printable(problem) + "\n");
        (StatusCode::SERVICE_UNAVAILABLE, lines.collect::<String>()).into_response()
    }
}

fn metrics(registry: &Registry) -> Response {
    let mut body = Vec::new();
    let encoder = TextEncoder::new();
    match encoder.encode(&registry.gather(), &mut body) {
        Ok(()) => (
            [(header::CONTENT_TYPE, encoder.format_type().to_owned())],
            body,
        )
            .into_response(),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot encode metrics: {error}\n"),
        )
            .into_response(),
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
