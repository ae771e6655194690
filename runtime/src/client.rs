//! A client of the API server that detects dead connections.
//!
//! A connection whose peer has vanished without a FIN or RST (a power cut, a firewall that
//! lost its state) cannot be distinguished from an idle one. The kernel probes idle connections
//! ([`KEEPALIVE`]) and drops those whose data is not acknowledged ([`USER_TIMEOUT`]), so a
//! vanished peer is detected within half a minute. A connection that a load balancer in
//! between keeps alive is dropped after [`SILENCE`] without a byte: no watch is silent for
//! so long, since it is renewed before ([`super::watch::paged`]).

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
    config::InferConfigError,
};
use prometheus::{
    Gauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use thiserror::Error;
use tower::{BoxError, ServiceBuilder, retry::RetryLayer, timeout::TimeoutLayer};

use crate::{heartbeat::Heartbeat, retry::Twice};

/// The deadline for a new connection.
const CONNECT: Duration = Duration::from_secs(5);
/// An idle connection is probed after this time, …
const KEEPALIVE: Duration = Duration::from_secs(15);
/// … then as often as this, …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// … and is dropped after so many probes without an answer.
const KEEPALIVE_TRIES: u32 = 3;
/// A connection whose data is not acknowledged for this time is dropped.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection on which the API server sends nothing for this time is dead. About the same
/// as in Kubernetes' own clients (k8s.io/apimachinery pkg/util/net: a ping after 30 s, 15 s
/// for the answer), and a second before kube gives up a silent watch without a word.
pub const SILENCE: Duration = Duration::from_secs(44);

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no configuration.
    #[error(
        "cannot find the API server: run in a Pod with a ServiceAccount, or set KUBECONFIG: {0}"
    )]
    NoConfig(#[from] InferConfigError),
    /// The configuration cannot be used.
    #[error("cannot set up a client for the API server: {0}")]
    Setup(#[from] kube::Error),
}

/// The configuration by the usual rules: in a Pod its ServiceAccount, else KUBECONFIG.
///
/// # Errors
/// If neither is there.
pub async fn config() -> Result<Config, ClientError> {
    Ok(Config::infer().await?)
}

/// A client that beats `heard` at every answer of the API server. With a `deadline` every
/// request is sent once and fails after that time: who sends it knows whether it is still
/// wanted. Watches need a client without one.
///
/// # Errors
/// If a certificate or a key cannot be read.
pub fn client(
    config: &Config,
    heard: &Heartbeat,
    deadline: Option<Duration>,
) -> Result<Client, ClientError> {
    let mut http = HttpConnector::new();
    // The layer around it adds TLS.
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_TRIES));
    http.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(http)?;
    let mut connector = TimeoutConnector::new(https);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_write_timeout(Some(SILENCE));
    let sending = legacy::Builder::new(TokioExecutor::new()).build::<_, Body>(connector);

    // The same as kube's own, but for the connector.
    let heard = heard.clone();
    let service = ServiceBuilder::new()
        .option_layer(deadline.map(TimeoutLayer::new))
        .layer(config.base_uri_layer())
        .option_layer(
            deadline
                .is_none()
                .then(|| RetryLayer::new(Twice::default())),
        )
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_response(move |response| {
            heard.beat();
            response
        })
        .map_err(BoxError::from)
        .service(sending);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// A text for `/readyz` if the API server has not answered for too long.
#[must_use]
pub fn silence(heard: &Heartbeat) -> Option<String> {
    let age = heard.age();
    (age >= SILENCE).then(|| format!("no answer from the API server for {} s", age.as_secs()))
}

/// The metric of how long ago the API server last answered.
pub struct Silence {
    heard: Heartbeat,
    gauge: Gauge,
}

impl Silence {
    /// The metric, under that name.
    ///
    /// # Errors
    /// If the name is not valid.
    pub fn new(name: &str, heard: Heartbeat) -> prometheus::Result<Self> {
        let gauge = Gauge::new(name, "Seconds since the API server last answered")?;
        Ok(Self { heard, gauge })
    }
}

impl Collector for Silence {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set(self.heard.age().as_secs_f64());
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;

    #[test]
    fn silence_is_measured_when_it_is_asked_for() {
        let (registry, heard) = (Registry::new(), Heartbeat::default());
        let metric = Silence::new("silence_seconds", heard.clone()).unwrap();
        registry.register(Box::new(metric)).unwrap();
        let value = || registry.gather()[0].get_metric()[0].get_gauge().get_value();
        let first = value();
        while value() <= first {}
        assert_eq!(silence(&heard), None);
    }
}
