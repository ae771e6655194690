//! What changes while no agent runs is made up for. Each test alone on the cluster: it stops
//! an agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::expect::{AMPLE, BOTH, LONG, answers, ingress_is, refuses};
use highwire_e2e::{Scope, cluster_test, highwire, wait_for};
use macro_rules_attribute::apply;

use super::{cluster, only, web_pod};

/// For one datagram's answer: on this machine it comes within a millisecond.
const MOMENT: Duration = Duration::from_millis(100);

#[apply(cluster_test)]
async fn pods_and_services_that_changed_meanwhile_are_followed() -> Result<()> {
    let cluster = cluster().await?;
    let scope = Scope::alone(&cluster, "meanwhile").await?;
    let old = web_pod(&scope, "web-1", "n2").await?;
    let [kept, goes, comes] = [scope.free_port()?, scope.free_port()?, scope.free_port()?];
    let service = async |name: &str, port: u16| {
        let service = scope.service(name).load_balancer().select("app", "web");
        service.tcp(port, 8080).udp(port, 5353).create().await
    };
    ingress_is(&service("kept", kept).await?, &BOTH).await;
    let going = service("goes", goes).await?;
    ingress_is(&going, &BOTH).await;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    answers(&client, n1.v4(kept)).await;
    answers(&client, n1.v4(goes)).await;
    let mut flow = client.udp_flow(n1.v4(kept))?;
    flow.ask(AMPLE)?;

    let agent = cluster.agent("n1")?;
    agent.stop()?;
    // The rules stay: who came before and who comes now is answered.
    let mut stream = client.tcp_connect(n1.v4(kept), AMPLE)?;
    stream.say("without an agent")?;
    web_pod(&scope, "web-2", "n1").await?;
    going.delete().await?;
    let coming = service("comes", comes).await?;
    ingress_is(&coming, &BOTH[1..]).await;
    old.delete(&cluster).await?;
    let stuck = flow.ask(MOMENT);
    ensure!(stuck.is_err(), "answered by nobody: {stuck:?}");
    agent.start(&[]).await?;
    agent.wait_ready(highwire::READY).await?;
    only(&client, n1.v4(kept), &["web-2"]).await;
    only(&client, n1.v4(comes), &["web-2"]).await;
    refuses(&client, n1.v4(goes)).await;
    let reply = wait_for("an answer to the flow", LONG, || {
        let outcome = flow.ask(MOMENT);
        async move { outcome }
    })
    .await;
    ensure!(reply.pod == "web-2", "{reply:?}");
    ingress_is(&coming, &BOTH).await;
    Ok(())
}
