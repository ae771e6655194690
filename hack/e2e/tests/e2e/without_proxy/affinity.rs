//! `sessionAffinity: ClientIP` while Pods come and go. Our rules remember each client's Pod.
//!
//! Addresses: the client has 198.51.100.150 to .169 besides its own. Each test alone on the
//! cluster: it restarts an agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};
use highwire_e2e::expect::{AMPLE, BOTH, LONG, Undo, answers, ingress_is};
use highwire_e2e::{Node, Pod, Programs as _, Scope, cluster_test, highwire, wait_for};
use macro_rules_attribute::apply;
use serde_json::json;

use super::{cluster, web_pod};

/// The last numbers of the clients' addresses. By their hashes alone, a third of them or more
/// would change Pods when one more comes.
const CLIENTS: RangeInclusive<u8> = 150..=169;

/// Each client's Pod.
type Kept = BTreeMap<u8, String>;

/// Each client connects once.
async fn ask_all(scope: &Scope, to: SocketAddr) -> Result<Kept> {
    let mut kept = Kept::new();
    for last in CLIENTS {
        let from = SocketAddr::new(IpAddr::from([198, 51, 100, last]), 0);
        // The first packet to a Pod that is gone is dropped; TCP sends it again.
        let reply = wait_for(&format!("an answer to {from}"), LONG, || async {
            scope.cluster().outside().http_get_from(from, to, LONG)
        })
        .await;
        kept.insert(last, reply.pod);
    }
    Ok(kept)
}

/// Waits until connections may get this Pod, or may not any more.
async fn is_target(node: &Node, pod: &Pod, wanted: bool) {
    let address = pod.addresses()[0].to_string();
    let what = format!("{address} to be a target of {}: {wanted}", node.name);
    wait_for(&what, LONG, || async {
        let map = ["nft", "list", "map", "inet", "highwire", "target4"];
        let listed = node.netns().check(&map)?;
        let is_one = listed.contains(&format!(": {address} ."));
        ensure!(is_one == wanted, "{listed}");
        Ok(())
    })
    .await;
}

#[apply(cluster_test)]
async fn a_client_keeps_its_pod_until_that_is_gone_and_no_other_client_moves() -> Result<()> {
    let cluster = cluster().await?;
    let scope = Scope::alone(&cluster, "keeps").await?;
    let mut pods = BTreeMap::new();
    for (pod, node) in [("web-1", "n1"), ("web-2", "n2"), ("web-3", "n3")] {
        pods.insert(pod.to_owned(), web_pod(&scope, pod, node).await?);
    }
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().tcp(port, 8080);
    let service = service.spec("sessionAffinity", json!("ClientIP"));
    ingress_is(&service.create().await?, &BOTH).await;
    let addresses = |verb: &str| -> String {
        let line = |last| format!("addr {verb} 198.51.100.{last}/24 dev eth0\n");
        CLIENTS.map(line).collect()
    };
    let client = cluster.outside();
    let _addresses = Undo::after(&client, &addresses("add"), addresses("del"))?;
    let n1 = cluster.node("n1")?;
    let to = n1.v4(port);
    answers(&client, to).await;
    for pod in pods.values() {
        is_target(&n1, pod, true).await;
    }

    let first = ask_all(&scope, to).await?;
    ensure!(ask_all(&scope, to).await? == first, "nothing has changed");
    let more = web_pod(&scope, "web-4", "n1").await?;
    is_target(&n1, &more, true).await;
    let with_more = ask_all(&scope, to).await?;
    ensure!(with_more == first, "{first:?} became {with_more:?}");
    let agent = cluster.agent("n1")?;
    agent.restart()?;
    agent.wait_ready(highwire::READY).await?;
    let restarted = ask_all(&scope, to).await?;
    ensure!(restarted == first, "{first:?} became {restarted:?}");

    let (_, gone) = first.first_key_value().expect("there are clients");
    pods[gone].delete(&cluster).await?;
    is_target(&n1, &pods[gone], false).await;
    let without = ask_all(&scope, to).await?;
    for (client, pod) in &first {
        let now = &without[client];
        ensure!(
            (now == pod) == (pod != gone),
            "{client}: {pod} to {now}, {gone} is gone"
        );
    }
    // Who has moved stays there too.
    let last = web_pod(&scope, "web-5", "n2").await?;
    is_target(&n1, &last, true).await;
    let then = ask_all(&scope, to).await?;
    ensure!(then == without, "{without:?} became {then:?}");
    // One that has not connected yet may get any.
    client.http_get(to, AMPLE)?;
    Ok(())
}
