//! kube-proxy on this node: its mode, whether it follows the Services, and which it has; or
//! that there is none.

pub mod entrances;
pub mod health;
mod http;
pub mod mode;
mod others;
mod search;
mod syncs;

use std::{
    future::pending,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use highwire_api::node::ProxyMode;
use tokio::{sync::mpsc, time::sleep};
use tracing::info;

pub use self::{health::Failing, others::Other, syncs::Syncs};
use self::{
    health::{Health, Watch},
    http::get,
    mode::detect,
    search::Search,
};

/// How often kube-proxy is asked, …
const PERIOD: Duration = Duration::from_secs(10);
/// … and while there is no sign of it, or it fails.
const SEARCH_PERIOD: Duration = Duration::from_secs(2);

/// kube-proxy's `--metrics-bind-address` by default.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// kube-proxy's `--healthz-bind-address` by default, or an address that this is one of.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// Who picks the Pods of Services on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Expected {
    /// kube-proxy; or our own rules, where there is no sign of it but of another program that
    /// does its work.
    #[default]
    Auto,
    /// kube-proxy.
    KubeProxy,
    /// Our own rules.
    None,
}

/// What is known of kube-proxy on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceProxy {
    /// How it works; `None` if there is no sign of it where there should be one.
    pub mode: Option<ProxyMode>,
    /// Why it does not follow what changes, if it does not.
    pub failing: Option<Failing>,
}

/// Sends what is known, turned into an `Input` by `wrap`, now and after every change of
/// it, until the receiver is gone.
pub async fn follow<Input>(
    expected: Expected,
    sender: mpsc::Sender<Input>,
    wrap: impl Fn(ServiceProxy) -> Input,
) {
    if expected == Expected::None {
        let without = ServiceProxy {
            mode: Some(ProxyMode::Absent),
            failing: None,
        };
        if sender.send(wrap(without)).await.is_ok() {
            pending::<()>().await;
        }
        return;
    }
    let mut known: Option<ServiceProxy> = None;
    let mut watch = Watch::default();
    let mut search = Search::new(expected);
    loop {
        let (said, health) = tokio::join!(get(METRICS, "/proxyMode"), get(HEALTH, "/livez"));
        let health = health.as_deref().and_then(Health::parse);
        let last = known.as_ref().and_then(|known| known.mode);
        let found = detect(said.as_deref(), last).await;
        let mode = search.found(found.mode, found.other, Instant::now());
        let failing = watch.heard(said.is_some(), health.as_ref(), Instant::now());
        let now = ServiceProxy {
            // Other programs answer at its health port too.
            failing: failing.filter(|_| mode != Some(ProxyMode::Absent)),
            mode,
        };
        if last != mode && mode == Some(ProxyMode::Absent) {
            info!(instead = ?found.other, "no kube-proxy here: our rules pick the Pods");
        }
        if known.as_ref() != Some(&now) && sender.send(wrap(now.clone())).await.is_err() {
            return;
        }
        let well = now.mode.is_some() && now.failing.is_none();
        known = Some(now);
        sleep(if well { PERIOD } else { SEARCH_PERIOD }).await;
    }
}

/// How kube-proxy's syncs went; `None` if it does not say.
pub async fn syncs() -> Option<Syncs> {
    Syncs::parse(&get(METRICS, "/metrics").await?)
}
