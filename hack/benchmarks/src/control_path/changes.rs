//! What changes while a Service is served: its endpoints, and the nodes.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwire_e2e::traffic::http_get;
use highwire_e2e::{Cluster, Netns, Programs as _, Scope, Svc, highwire};
use serde_json::json;

use super::created::{last_of, milliseconds, watch};
use crate::output::stats::Sample;

const PAUSE: Duration = Duration::from_millis(2);
const ATTEMPT: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(60);

/// Milliseconds from the change of a Service's endpoints until clients reach the new one.
pub(crate) struct Moved {
    /// New connections to the Service's port.
    pub(crate) port: Sample,
    /// New connections to its NodePort.
    pub(crate) node_port: Sample,
    /// A UDP client that goes on sending from the same socket.
    pub(crate) flow: Sample,
}

/// Moves a Service to and fro between the Pods `web-1` and `web-2`, so many times.
pub(crate) async fn endpoints(cluster: &Cluster, scope: &Scope, rounds: usize) -> Result<Moved> {
    let port = scope.free_port()?;
    let service = scope
        .service("moved")
        .load_balancer()
        .select("pod", "web-1");
    let service = service.tcp(port, 8080).udp(port, 8080).create().await?;
    let node = cluster.node(highwire::SERVING[0])?;
    let (at_port, at_node_port) = (node.v4(port), node.v4(service.node_port(port)?));
    let client = cluster.outside();
    let (mut by_port, mut by_node_port, mut by_flow) = (vec![], vec![], vec![]);
    let mut udp = client.udp_flow(at_port)?;
    for round in 0..=rounds {
        let pod = if round % 2 == 0 { "web-1" } else { "web-2" };
        let start = Instant::now();
        if round > 0 {
            service
                .patch(json!({"spec": {"selector": {"pod": pod}}}))
                .await?;
        }
        let watches = [at_port, at_node_port].map(|to| reached(client.clone(), to, pod, start));
        let flow = thread::spawn(move || -> Result<_> {
            while udp.ask(ATTEMPT).map_or(true, |reply| reply.pod != pod) {
                ensure!(
                    start.elapsed() < LIMIT,
                    "the flow does not move in {LIMIT:?}"
                );
                thread::sleep(PAUSE);
            }
            Ok((milliseconds(start), udp))
        });
        let (moved, flow) = flow.join().ok().context("the flow panicked")??;
        udp = flow;
        let [port, node_port] = watches;
        let (port, node_port) = (last_of(vec![port])?, last_of(vec![node_port])?);
        // The first round only waits until all is there.
        if round > 0 {
            by_port.push(port);
            by_node_port.push(node_port);
            by_flow.push(moved);
        }
    }
    service.delete().await?;
    let sample = |values| Sample::new(values).context("nothing was measured");
    Ok(Moved {
        port: sample(by_port)?,
        node_port: sample(by_node_port)?,
        flow: sample(by_flow)?,
    })
}

fn reached(
    from: Netns,
    to: SocketAddr,
    pod: &'static str,
    start: Instant,
) -> thread::JoinHandle<Result<f64>> {
    watch(from, start, PAUSE, move || {
        http_get(to, ATTEMPT).is_ok_and(|reply| reply.pod == pod)
    })
}

/// Milliseconds from an agent's sudden end until its node has left the Service's ingress.
pub(crate) async fn node_loss(cluster: &Cluster, service: &Svc, rounds: usize) -> Result<Sample> {
    let agent = cluster.agent(highwire::SERVING[1])?;
    let mut lost = Vec::new();
    for _ in 0..rounds {
        nodes(service, 2).await?;
        let start = Instant::now();
        agent.kill()?;
        nodes(service, 1).await?;
        lost.push(milliseconds(start));
        agent.unit().start_again()?;
    }
    nodes(service, 2).await?;
    Sample::new(lost).context("nothing was measured")
}

/// Waits until the ingress lists so many nodes.
async fn nodes(service: &Svc, count: usize) -> Result<()> {
    let start = Instant::now();
    while service.ingress().await?.len() != count {
        ensure!(
            start.elapsed() < LIMIT,
            "no ingress of {count} within {LIMIT:?}"
        );
        tokio::time::sleep(PAUSE * 5).await;
    }
    Ok(())
}
