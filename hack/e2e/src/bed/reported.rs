//! What Events, conditions and reports say, and listeners that take a port.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::Value;

use crate::bed::expect::{AMPLE, LONG};
use crate::bed::scope::Scope;
use crate::bed::service::Svc;
use crate::cluster::handle::Cluster;
use crate::lab::http::listen_sctp;
use crate::lab::netns::Netns;
use crate::lab::wait::wait_for;

/// Waits until an Event of that reason stands on the Service; its message.
pub async fn event(scope: &Scope, service: &Svc, reason: &str) -> String {
    wait_for(&format!("the event {reason}"), LONG, || async {
        let found = events(scope, service, reason)?;
        found.first().cloned().context("none yet")
    })
    .await
}

/// The messages of all Events of that reason on the Service, as of now.
pub fn events(scope: &Scope, service: &Svc, reason: &str) -> Result<Vec<String>> {
    let selector = format!(
        "--field-selector=reason={reason},involvedObject.name={}",
        service.name()
    );
    let arguments = [
        "get",
        "events",
        "-n",
        scope.namespace(),
        &selector,
        "-o=json",
    ];
    let listed: Value = serde_json::from_str(&scope.cluster().kubectl(&arguments)?)?;
    let items = listed["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .filter_map(|item| item["message"].as_str().map(str::to_owned))
        .collect())
}

/// Waits until the condition LoadBalancerPortsError has this status; its message.
pub async fn ports_error(service: &Svc, status: &str) -> String {
    condition(service, "LoadBalancerPortsError", status)
        .await
        .message
}

/// Waits until the condition LoadBalancerPortsError is True and its message has all of `words`.
///
/// Nodes report one after the other, so the first message may name only some of them.
pub async fn ports_error_names(service: &Svc, words: &[&str]) {
    let what = format!("LoadBalancerPortsError with {words:?}");
    wait_for(&what, LONG, || async {
        let message = ports_error(service, "True").await;
        let all = words.iter().all(|word| message.contains(word));
        all.then_some(()).ok_or(message)
    })
    .await;
}

/// Waits until the condition highwire.dev/Serving has this status.
pub async fn serving(service: &Svc, status: &str) -> Condition {
    condition(service, "highwire.dev/Serving", status).await
}

async fn condition(service: &Svc, type_: &str, status: &str) -> Condition {
    wait_for(&format!("{type_} {status}"), LONG, || async {
        let conditions = service
            .get()
            .await
            .map_err(|e| e.to_string())?
            .status
            .and_then(|s| s.conditions);
        let conditions = conditions.unwrap_or_default();
        let found = conditions.iter().find(|c| c.type_ == type_);
        match found {
            Some(condition) if condition.status == status => Ok(condition.clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// What the node says of its conflicts, as text.
pub fn described(cluster: &Cluster, node: &str) -> Result<String> {
    cluster.kubectl(&["get", "lbn", node, "-o=jsonpath={.status.conflicts}"])
}

/// Listens in the namespace, as a program on the host would.
pub fn bind_tcp(netns: &Netns, address: &str, port: u16) -> Result<TcpListener> {
    let address: SocketAddr = format!("{address}:{port}").parse()?;
    Ok(netns.run(move || TcpListener::bind(address))?)
}

/// The same by SCTP; few kernels have it.
pub fn bind_sctp(netns: &Netns, address: &str, port: u16) -> Result<TcpListener> {
    let address: SocketAddr = format!("{address}:{port}").parse()?;
    Ok(netns.run(move || listen_sctp(address))?)
}

/// Answers one connection, as the program on the host would.
pub fn greeted(listener: &TcpListener, from: &Netns, to: SocketAddr) -> Result<()> {
    listener.set_nonblocking(false)?;
    let stream = from.tcp_connect(to, AMPLE)?;
    let client = stream.local_addr()?;
    let (_, peer) = listener.accept()?;
    // An IPv6 socket sees IPv4 clients as mapped addresses.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    ensure!(peer == client, "{peer} was let in instead of {client}");
    Ok(())
}
