//! An API server behind a network that drops all packets.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, answers, ingress_is, web_pods, web_service};
use highwire_e2e::layout::CONTROL_PLANE_V4;
use highwire_e2e::{Cluster, IpFamily, Netns, PrivateCluster, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

/// After this time without an answer `/readyz` says so, with some time to notice.
const NOTICED: Duration = Duration::from_secs(60);

/// Drops every packet to and from the API server, until it is healed.
fn cut(node: &Netns) -> Result<()> {
    let api = CONTROL_PLANE_V4;
    let rules = format!(
        "add table ip cut; \
         add chain ip cut in {{ type filter hook prerouting priority -300; }}; \
         add rule ip cut in ip saddr {api} drop; \
         add chain ip cut out {{ type filter hook output priority -300; }}; \
         add rule ip cut out ip daddr {api} drop"
    );
    node.check(&["nft", &rules]).map(drop)
}

fn heal(node: &Netns) -> Result<()> {
    node.check(&["nft", "delete table ip cut"]).map(drop)
}

/// The API server ends and another begins. Who is cut off from it hears nothing of that,
/// so its connections are open on one side only.
async fn replace_api_server(cluster: &Cluster) -> Result<()> {
    let apiserver = cluster.unit("kube-apiserver");
    apiserver.kill()?;
    apiserver.start_again()?;
    wait_for("the API server to be back", LONG * 3, || async {
        cluster.kubectl(&["get", "--raw=/readyz"])
    })
    .await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_silent_api_server_is_noticed_and_found_again_without_a_restart() -> Result<()> {
    // Of IPv4 only, so that there is one such cluster.
    let ipv4 = PrivateCluster::up_with("half", 2, |config| config.ip_family = IpFamily::Ipv4);
    let cluster = ipv4.await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "cut").await?;
    web_pods(&scope).await?;
    let (port, client) = (scope.free_port()?, cluster.outside());
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    let (n1, agent) = (cluster.node("n1")?, cluster.agent("n1")?);
    let pid = agent.unit().pid();

    // Shorter than anything can be noticed in.
    cut(n1.netns())?;
    replace_api_server(&cluster).await?;
    heal(n1.netns())?;
    let soon = scope.free_port()?;
    web_service(&scope, "soon", soon).await?;
    wait_for("the new Service's answer", LONG * 2, || async {
        client.http_get(n1.v4(soon), highwire_e2e::expect::SHORT)
    })
    .await;

    // All watches are back, so that what follows is not said of the first cut.
    agent.wait_ready(LONG).await?;
    cut(n1.netns())?;
    wait_for("readyz to say so", NOTICED, || async {
        let said = format!("{:?}", agent.get("/readyz"));
        if said.contains("watching") || said.contains("no answer from the API server") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    wait_for("the silence to be counted", NOTICED, || async {
        let silence = agent.metric("highwire_agent_api_server_silence_seconds")?;
        ensure!(silence > 10.0, "{silence} s");
        anyhow::Ok(())
    })
    .await;
    answers(&client, n1.v4(port)).await;
    heal(n1.netns())?;
    let later = scope.free_port()?;
    web_service(&scope, "later", later).await?;
    answers(&client, n1.v4(later)).await;
    ingress_is(&service, &BOTH).await;
    ensure!(agent.unit().pid() == pid, "it must have lived through it");
    Ok(())
}
