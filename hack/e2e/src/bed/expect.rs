//! What most tests begin with and wait for: two Pods, a Service, answers, refusals.
//!
//! Waiting panics when time runs out, with what was seen last.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::bed::scope::Scope;
use crate::bed::service::Svc;
use crate::bed::traffic::{EchoReply, UdpFlow};
use crate::cluster::config::ProxyMode;
use crate::cluster::handle::Cluster;
use crate::highwire;
use crate::lab::http::ConnectError;
use crate::lab::netns::Netns;
use crate::lab::wait::wait_for;

/// For one exchange that may fail: it is repeated, or there is to be no answer.
pub const SHORT: Duration = Duration::from_millis(800);
/// For one exchange that has to succeed, on a machine that is busy too. TCP sends what was
/// lost once more within it; what is lost at all is counted by hack/bench loss.
pub const AMPLE: Duration = Duration::from_secs(5);
/// For conditions that come true in time.
pub const LONG: Duration = Duration::from_secs(20);

/// Commands to be run in a namespace when this goes.
pub struct Undo {
    netns: Netns,
    commands: Commands,
}

enum Commands {
    Ip(String),
    Shell(String),
}

impl Undo {
    /// Runs these `ip` commands now, and `undo` at the end.
    pub fn after(netns: &Netns, lines: &str, undo: String) -> Result<Self> {
        Self::run(netns, &Commands::Ip(lines.to_owned()), Commands::Ip(undo))
    }

    /// Runs these commands of a shell now, and `undo` at the end.
    pub fn after_shell(netns: &Netns, lines: &str, undo: &str) -> Result<Self> {
        let undo = Commands::Shell(undo.to_owned());
        Self::run(netns, &Commands::Shell(lines.to_owned()), undo)
    }

    fn run(netns: &Netns, now: &Commands, undo: Commands) -> Result<Self> {
        let undo = Self {
            netns: netns.clone(),
            commands: undo,
        };
        // What was done before it failed is undone too.
        now.run(netns)?;
        Ok(undo)
    }
}

impl Commands {
    fn run(&self, netns: &Netns) -> Result<()> {
        match self {
            Self::Ip(lines) => netns.ip_batch(lines),
            Self::Shell(lines) => netns.check(&["sh", "-ec", lines]).map(drop),
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Err(error) = self.commands.run(&self.netns) {
            eprintln!("undo: {error:#}");
        }
    }
}

/// The shared cluster with Highwire on n1 and n2, and a scope with Pods web-1 on
/// n1 and web-2 on n2 (TCP 8080, UDP 5353, label app=web).
pub async fn web(prefix: &str) -> Result<(Cluster, Scope)> {
    let cluster = Cluster::attach().await?;
    let scope = Scope::new(&cluster, prefix).await?;
    highwire::require(&cluster)?;
    web_pods(&scope).await?;
    Ok((cluster, scope))
}

/// The same with no other test on the shared cluster meanwhile.
pub async fn web_alone(prefix: &str) -> Result<(Cluster, Scope)> {
    let cluster = Cluster::attach().await?;
    let scope = Scope::alone(&cluster, prefix).await?;
    highwire::require(&cluster)?;
    web_pods(&scope).await?;
    Ok((cluster, scope))
}

/// Those Pods, in any scope.
pub async fn web_pods(scope: &Scope) -> Result<()> {
    for (pod, node) in [("web-1", "n1"), ("web-2", "n2")] {
        let pod = scope.pod(pod).on(node).label("app", "web");
        pod.tcp(8080).udp(5353).start().await?;
    }
    Ok(())
}

/// A LoadBalancer Service for those Pods on a TCP port, of IPv4.
pub async fn web_service(scope: &Scope, name: &str, port: u16) -> Result<Svc> {
    let service = scope.service(name).load_balancer().select("app", "web");
    service.tcp(port, 8080).create().await
}

/// The IPv4 addresses of the nodes that serve.
pub const BOTH: [&str; 2] = ["192.0.2.11", "192.0.2.12"];

/// The addresses of the nodes that serve, in both families.
pub const ALL: [&str; 4] = [
    "192.0.2.11",
    "192.0.2.12",
    "2001:db8:1::11",
    "2001:db8:1::12",
];

/// A dual-stack LoadBalancer Service for the Pods of [`web`] on a TCP port.
pub async fn dual_service(scope: &Scope, name: &str, port: u16) -> Result<Svc> {
    let service = scope.service(name).load_balancer().select("app", "web");
    service.dual_stack().tcp(port, 8080).create().await
}

/// The port at the node's IPv4 and IPv6 addresses.
pub fn at_both_addresses(cluster: &Cluster, node: &str, port: u16) -> Result<[SocketAddr; 2]> {
    let node = cluster.node(node)?;
    Ok([node.v4(port), node.v6(port)])
}

/// A LoadBalancer Service `web` that n1 and n2 serve, with all it needs.
pub struct Served {
    /// The shared cluster.
    pub cluster: Cluster,
    /// Takes Pods and Service away when it goes.
    pub scope: Scope,
    /// The Service.
    pub service: Svc,
    /// Its TCP port.
    pub port: u16,
}

/// What [`web`] gives, and a Service for it that is advertised already.
pub async fn served(prefix: &str) -> Result<Served> {
    serve(web(prefix).await?).await
}

/// A Service for the Pods of [`web`] or [`web_alone`] that is advertised already.
pub async fn serve((cluster, scope): (Cluster, Scope)) -> Result<Served> {
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    Ok(Served {
        cluster,
        scope,
        service,
        port,
    })
}

/// Waits until the ingress lists exactly these addresses.
pub async fn ingress_is(service: &Svc, wanted: &[&str]) {
    wait_for(&format!("ingress {wanted:?}"), LONG, || async {
        match service.ingress_ips().await {
            Ok(found) if found == wanted => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Waits for an HTTP answer.
pub async fn answers(from: &Netns, to: SocketAddr) -> EchoReply {
    wait_for(&format!("an answer from {to}"), LONG, || async {
        from.http_get(to, SHORT)
    })
    .await
}

/// Waits until connections are refused, which a timeout is not.
pub async fn refuses(from: &Netns, to: SocketAddr) {
    wait_for(&format!("{to} to refuse"), LONG, || async {
        match from.http_get(to, SHORT) {
            Err(ConnectError::Refused) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Waits until a node forwards nothing for a Service with `externalTrafficPolicy: Local` of
/// which it has no endpoint.
pub async fn refuses_without_local_endpoints(cluster: &Cluster, to: SocketAddr) {
    let client = cluster.outside();
    let node = cluster
        .nodes()
        .into_iter()
        .find(|node| node.addresses().contains(&to.ip()));
    let mode = node.and_then(|node| cluster.config().proxy_modes.on(node.index));
    if mode.is_none_or(ProxyMode::refuses_without_local_endpoints) {
        return refuses(&client, to).await;
    }
    wait_for(&format!("{to} to answer no more"), LONG, || async {
        match client.http_get(to, SHORT) {
            Err(ConnectError::Timeout) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Waits until UDP is refused to a client that begins anew each time.
pub async fn refuses_new_udp(from: &Netns, to: SocketAddr) {
    wait_for(&format!("{to} to refuse UDP"), LONG, || async {
        match from.udp_ask(to, SHORT) {
            Err(ConnectError::Refused) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Sends on the flow until it is refused.
pub async fn refuses_udp(flow: &mut UdpFlow) {
    wait_for("a refusal", LONG, || {
        let outcome = flow.ask(SHORT);
        async move {
            match outcome {
                Err(ConnectError::Refused) => Ok(()),
                other => Err(other),
            }
        }
    })
    .await;
}

/// Asks until each of `pods` has answered.
pub async fn all_answer(pods: &[&str], mut ask: impl FnMut() -> Result<EchoReply, ConnectError>) {
    let wanted: BTreeSet<String> = pods.iter().map(ToString::to_string).collect();
    let mut seen = BTreeSet::new();
    wait_for(&format!("all of {wanted:?} to answer"), LONG, || {
        let answer = ask().map(|reply| seen.insert(reply.pod));
        let result = if seen.is_superset(&wanted) {
            Ok(())
        } else {
            Err((seen.clone(), answer))
        };
        async move { result }
    })
    .await;
}
