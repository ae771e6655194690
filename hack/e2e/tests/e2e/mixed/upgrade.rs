//! From the previous version to this one, one program after the other, under load: the
//! agents and controllers of both work side by side. `hack/build-previous` builds the
//! old ones. On a cluster of its own.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, answers, ingress_is, web_pods, web_service};
use highwire_e2e::{Clients, Cluster, Kubelet, PrivateCluster, Program, Scope, Svc, highwire};
use macro_rules_attribute::apply;
use serde_json::json;

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
