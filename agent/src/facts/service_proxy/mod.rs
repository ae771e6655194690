//! kube-proxy on this node: its mode, whether it follows the Services, and which it has.

pub mod entrances;
pub mod health;
mod http;
pub mod mode;
mod syncs;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use highwire_api::node::ProxyMode;
use tokio::{sync::mpsc, time::sleep};

pub use self::{health::Failing, syncs::Syncs};
use self::{
    health::{Health, Watch},
    http::get,
    mode::detect,
};

/// How often kube-proxy is asked, …
const PERIOD: Duration = Duration::from_secs(10);
/// … and while there is no sign of it, or it fails.
const SEARCH_PERIOD: Duration = Duration::from_secs(2);

/// kube-proxy's `--metrics-bind-address` by default.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// kube-proxy's `--healthz-bind-address` by default, or an address that this is one of.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// What is known of kube-proxy on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceProxy {
    /// How it works; `None` if there is no sign of it.
    pub mode: Option<ProxyMode>,
    /// Why it does not follow what changes, if it does not.
    pub failing: Option<Failing>,
}

/// Sends what is known, turned into an `Input` by `wrap`, now and after every change of
/// it, until the receiver is gone.
pub async fn follow<Input>(sender: mpsc::Sender<Input>, wrap: impl Fn(ServiceProxy) -> Input) {
    let mut known: Option<ServiceProxy> = None;
    let mut watch = Watch::default();
    loop {
        let (said, health) = tokio::join!(get(METRICS, "/proxyMode"), get(HEALTH, "/livez"));
        let health = health.as_deref().and_then(Health::parse);
        let last = known.as_ref().and_then(|known| known.mode);
        let now = ServiceProxy {
            mode: detect(said.as_deref(), last).await,
            failing: watch.heard(said.is_some(), health.as_ref(), Instant::now()),
        };
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
