//! `/healthz`, `/readyz` and `/metrics`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::future::BoxFuture;
use prometheus::{Encoder, Registry, TextEncoder};
use thiserror::Error;
use tokio::net::TcpListener;

use super::heartbeat::Heartbeat;

/// An event loop that has not turned for this long is taken for stuck.
const STUCK: Duration = Duration::from_secs(60);

/// What is not well, each in words; empty when all is.
pub type Problems = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Brings the metrics up to date, just before they are served.
pub type Refresh = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Why the admin server does not run.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Another program has the port, or the address is not this host's.
    #[error("cannot listen on {address}: {source}; choose another --listen address")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The server ended.
    #[error("the admin server on {address} ended: {source}")]
    Serve {
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// The admin server, bound but not yet serving.
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    refresh: Refresh,
}

impl Admin {
    /// Takes the port.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| AdminError::Bind { address, source })?;
        Ok(Self {
            listener,
            address,
            refresh: Arc::new(|| Box::pin(async {})),
        })
    }

    /// Runs this whenever metrics are asked for.
    #[must_use]
    pub fn refreshed_by(mut self, refresh: Refresh) -> Self {
        self.refresh = refresh;
        self
    }

    /// Serves until the process ends: `/healthz` by the loop's heartbeat,
    /// `/readyz` by `problems`, `/metrics` from the registry.
    ///
    /// # Errors
    /// If the listening socket fails.
    pub async fn serve(
        self,
        registry: Registry,
        heartbeat: Heartbeat,
        problems: Problems,
    ) -> Result<(), AdminError> {
        let refresh = self.refresh;
        let gathered = move || async move {
            refresh().await;
            metrics(&registry)
        };
        let router = Router::new()
            .route("/healthz", get(move || async move { healthz(&heartbeat) }))
            .route("/readyz", get(move || async move { readyz(&problems()) }))
            .route("/metrics", get(gathered));
        axum::serve(self.listener, router)
            .await
            .map_err(|source| AdminError::Serve {
                address: self.address,
                source,
            })
    }
}

fn healthz(heartbeat: &Heartbeat) -> Response {
    let age = heartbeat.age();
    if age < STUCK {
        "ok\n".into_response()
    } else {
        let text = format!("the event loop has not turned for {} s\n", age.as_secs());
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}

fn readyz(problems: &[String]) -> Response {
    if problems.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n").into_response()
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
