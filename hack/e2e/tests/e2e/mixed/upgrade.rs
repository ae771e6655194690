//! From the previous version to this one, one program after the other, under load: the
//! agents and controllers of both work side by side. `hack/build-previous` builds the
//! old ones. On a cluster of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, answers, ingress_is, web_pods, web_service};
use highwire_e2e::{Cluster, Kubelet, Netns, PrivateCluster, Program, Scope, Svc, highwire};
use macro_rules_attribute::apply;
use serde_json::json;
use tokio::task::{JoinHandle, spawn_blocking};

/// Between two connections of a client: more would only use up its ports.
const PACE: Duration = Duration::from_millis(10);

/// A lost SYN is sent again after 1 s.
const SLOW: Duration = Duration::from_millis(900);

fn previous() -> Result<PathBuf> {
    let folder = std::env::var_os("HIGHWIRE_PREVIOUS");
    folder.map(PathBuf::from).context(
        "HIGHWIRE_PREVIOUS is not set: hack/test cluster runs this test; by hand, \
         HIGHWIRE_PREVIOUS=$(hack/build-previous)",
    )
}

/// Starts the old program in place of `new`, with the one flag that it names otherwise.
async fn start_old(new: &Program, name: &str, arguments: &[&str]) -> Result<()> {
    let old = new.clone().run_from(previous()?.join(name));
    let old = old.with_arguments(arguments);
    old.start(&[]).await?;
    old.wait_ready(LONG).await
}

/// Ends the old program as an update of its DaemonSet or Deployment does, and starts the
/// new one in a Pod of its own.
async fn replace(cluster: &Cluster, new: &Program) -> Result<()> {
    let kubelet = Kubelet::of(cluster, vec![new.clone()]);
    let pod = new.workload().pod_name();
    cluster.kubectl(&["delete", "pod", &pod, "-nhighwire-system", "--timeout=60s"])?;
    drop(kubelet);
    new.start(&[]).await?;
    new.wait_ready(LONG).await
}

/// Clients that connect to the Service until they are dropped.
struct Clients {
    done: Arc<AtomicBool>,
    running: Vec<JoinHandle<Result<usize>>>,
}

impl Clients {
    /// One for every port of every node that serves.
    fn start(cluster: &Cluster, ports: &[u16]) -> Result<Self> {
        let mut clients = Self {
            done: Arc::default(),
            running: Vec::new(),
        };
        for node in highwire::SERVING {
            for port in ports {
                let (from, to) = (cluster.outside(), cluster.node(node)?.v4(*port));
                let done = Arc::clone(&clients.done);
                let client = spawn_blocking(move || connect(&from, to, &done));
                clients.running.push(client);
            }
        }
        Ok(clients)
    }

    /// How many connections each made; an error if any failed.
    async fn stop(mut self) -> Result<Vec<usize>> {
        self.done.store(true, Ordering::Relaxed);
        let mut made = Vec::new();
        for client in self.running.drain(..) {
            made.push(client.await??);
        }
        Ok(made)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // Else the test would never end.
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Connects until `done`, and keeps one connection from the start to the end. A slow
/// connection does not count as failed: other tests keep this machine busy.
fn connect(from: &Netns, to: SocketAddr, done: &AtomicBool) -> Result<usize> {
    let mut kept = from.tcp_connect(to, LONG)?;
    let mut made = 0;
    while !done.load(Ordering::Relaxed) {
        let start = Instant::now();
        from.http_get(to, LONG)
            .with_context(|| format!("{to}, after {made} connections"))?;
        made += 1;
        if start.elapsed() > SLOW {
            println!("connection {made} to {to} took {:?}", start.elapsed());
        }
        thread::sleep(PACE);
    }
    kept.say("after the upgrade")
        .with_context(|| format!("the connection to {to} from before"))?;
    Ok(made)
}

/// Services that are served during the upgrade, each with its version before.
struct Bed {
    scope: Scope,
    services: Vec<(Svc, Option<String>)>,
    // Last, for the scope needs it.
    cluster: PrivateCluster,
}

impl Bed {
    /// Nobody wrote the Services, and a new one gets every address and answers at each.
    async fn works(&self, stage: &str) -> Result<()> {
        println!("{stage}");
        let port = self.scope.free_port()?;
        let new = web_service(&self.scope, stage, port).await?;
        self.serves(&new, port).await?;
        for (service, before) in &self.services {
            let now = service.get().await?;
            ensure!(
                now.metadata.resource_version == *before,
                "{stage}: {} was written: {:?}",
                service.name(),
                now.status
            );
        }
        Ok(())
    }

    async fn serves(&self, service: &Svc, port: u16) -> Result<()> {
        ingress_is(service, &BOTH).await;
        for node in highwire::SERVING {
            answers(&self.cluster.outside(), self.cluster.node(node)?.v4(port)).await;
        }
        Ok(())
    }

    /// A plain one, and one with its own policy, protocol and source ranges; their ports.
    async fn create_services(&mut self) -> Result<[u16; 2]> {
        let ports = [self.scope.free_port()?, self.scope.free_port()?];
        let plain = web_service(&self.scope, "plain", ports[0]).await?;
        let special = self.scope.service("special").load_balancer();
        let special = special.select("app", "web").external_local();
        let special = special.tcp(ports[1], 8080).udp(ports[1], 5353);
        let special = special.spec("loadBalancerSourceRanges", json!(["198.51.100.0/24"]));
        for (service, port) in [plain, special.create().await?].into_iter().zip(ports) {
            self.serves(&service, port).await?;
            let version = service.get().await?.metadata.resource_version;
            self.services.push((service, version));
        }
        Ok(ports)
    }
}

#[apply(cluster_test)]
async fn an_upgrade_fails_no_connection_and_moves_no_address() -> Result<()> {
    let deploy = previous()?.join("deploy");
    let cluster = PrivateCluster::up("upg", 2).await?;
    cluster.kubectl(&["apply", "-f", &deploy.display().to_string()])?;
    let agents = [cluster.agent("n1")?, cluster.agent("n2")?];
    let controllers = [cluster.controller("c1")?, cluster.controller("c2")?];
    for (agent, node) in agents.iter().zip(highwire::SERVING) {
        cluster.opt_in(node).await?;
        start_old(agent, "highwire-agent", &["--listen=0.0.0.0:9807"]).await?;
    }
    let arguments = [
        ["--identity=c1", "--listen=0.0.0.0:9808"],
        ["--identity=c2", "--listen=0.0.0.0:9809"],
    ];
    for (controller, arguments) in controllers.iter().zip(arguments) {
        start_old(controller, "highwire-controller", &arguments).await?;
    }
    let scope = Scope::new(&cluster, "upg").await?;
    web_pods(&scope).await?;
    let mut bed = Bed {
        scope,
        services: Vec::new(),
        cluster,
    };
    let ports = bed.create_services().await?;
    let clients = Clients::start(&bed.cluster, &ports)?;

    highwire::apply(&bed.cluster)?;
    bed.works("old-programs-new-rights").await?;
    replace(&bed.cluster, &agents[0]).await?;
    bed.works("both-agents-old-controllers").await?;
    replace(&bed.cluster, &controllers[0]).await?;
    bed.works("both-agents-both-controllers").await?;
    replace(&bed.cluster, &controllers[1]).await?;
    bed.works("both-agents-new-controllers").await?;
    replace(&bed.cluster, &agents[1]).await?;
    bed.works("new-programs").await?;

    let made = clients.stop().await?;
    println!("connections, of which none failed: {made:?}");
    ensure!(made.iter().all(|made| *made > 100), "too little load");
    Ok(())
}
