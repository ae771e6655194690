//! Asking kube-proxy over HTTP on this host.

use std::{net::SocketAddr, time::Duration};

use highwire_runtime::http::{self, Limits};

const LIMITS: Limits = Limits {
    time: Duration::from_millis(500),
    // More than any answer that matters: kube-proxy's metrics are 110 KB.
    bytes: 1 << 20,
};

/// The body of the answer, whatever its status but "not found"; `None` if what answers in
/// time, if anything, does not know the path or speaks no HTTP.
pub(super) async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let answer = http::get(address, path, LIMITS).await.ok()?;
    (answer.status != 404).then(|| answer.body.trim().to_owned())
}
