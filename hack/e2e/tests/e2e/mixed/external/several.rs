//! Several Services on one box, and several controllers.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{AMPLE, LONG, SHORT, answers, ingress_is, refuses};
use highwire_e2e::reported::event;
use highwire_e2e::{highwire, wait_for};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::ListParams;
use macro_rules_attribute::apply;

use super::front::Front;

const CROWD: usize = 100;
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

#[apply(cluster_test)]
async fn the_second_of_a_port_waits_for_the_first_and_inherits() -> Result<()> {
    let front = Front::new("shared").await?;
    let pod = front.scope.pod("other-1").on("n2").label("app", "other");
    pod.tcp(8080).udp(5353).start().await?;
    let port = front.scope.free_port()?;
    let first = front.served("first", port).await?;
    let second = front.service("second").select("app", "other");
    let second = second.tcp(port, 8080).create().await?;
    let said = event(&front.scope, &second, "PortConflict").await;
    ensure!(said.contains("first"), "{said}");
    ensure!(second.ingress().await?.is_empty());
    let (client, to) = (front.cluster.outside(), front.outside.at(port));
    ensure!(answers(&client, to).await.pod.starts_with("web-"));
    // The same number of the other protocol is another port.
    let third = front.service("third").select("app", "other");
    let third = third.udp(port, 5353).create().await?;
    front.has_address(&third).await;
    wait_for("an answer by UDP", LONG, || async {
        client.udp_ask(to, SHORT)
    })
    .await;

    first.delete().await?;
    front.has_address(&second).await;
    wait_for("the Pod of the second", LONG, || async {
        let reply = client.http_get(to, AMPLE)?;
        ensure!(reply.pod == "other-1", "{reply:?}");
        Ok(())
    })
    .await;
    let backends = [
        front.backend(&second, port, "tcp"),
        front.backend(&third, port, "udp"),
    ];
    front.has_backends(&backends).await;
    // Two streams of one port are nothing that nginx loads: the first goes before the second
    // comes.
    let asked = |service, method: &str| {
        let backend = front.backend(service, port, "tcp");
        let asked = front.outside.updater().requests_for(&backend);
        asked.into_iter().find(|it| it.method == method)
    };
    let gone = asked(&first, "DELETE").and_then(|it| it.ended);
    let came = asked(&second, "POST").map(|it| it.started);
    ensure!(gone.is_some() && gone <= came, "{gone:?}, {came:?}");
    front.was_asked_well()
}

#[apply(cluster_test)]
async fn a_service_that_goes_elsewhere_leaves_its_box() -> Result<()> {
    let front = Front::new("leaves").await?;
    let port = front.scope.free_port()?;
    let service = front.served("web", port).await?;
    let (client, to) = (front.cluster.outside(), front.outside.at(port));
    answers(&client, to).await;
    let ports = serde_json::json!({ "spec": { "type": "ClusterIP", "loadBalancerClass": null } });
    service.patch(ports).await?;
    refuses(&client, to).await;
    ingress_is(&service, &[]).await;
    front.has_backends(&[]).await;
    front.was_asked_well()
}

#[apply(cluster_test)]
async fn a_leaders_death_amid_a_hundred_services_loses_nothing_and_turns_nothing_back() -> Result<()>
{
    let front = Front::alone("xlead").await?;
    let cluster = &front.cluster;
    // So that one is being asked at any time.
    front.outside.updater().delay(Duration::from_millis(30));
    let mut services = Vec::new();
    let mut killed = None;
    for batch in 0..CROWD / 10 {
        let creating: Vec<_> = (batch * 10..batch * 10 + 10)
            .map(|index| -> Result<_> {
                let port = front.scope.free_port()?;
                let service = front.service(&format!("web-{index}")).tcp(port, 8080);
                Ok((port, tokio::spawn(service.create())))
            })
            .collect::<Result<_>>()?;
        for (port, created) in creating {
            services.push((port, created.await??));
        }
        match batch {
            // Every backend changes, for good: what was sent before is old from now on.
            4 => cluster.label_node("n2", EXCLUDE, Some("")).await?,
            5 => {
                let first = highwire::leader(cluster).await?;
                cluster.controller(&first)?.kill()?;
                killed = Some(first);
            }
            _ => {}
        }
    }
    let api: Api<Service> = Api::namespaced(cluster.client(), front.scope.namespace());
    let address = front.outside.v4().to_string();
    wait_for("all to have the address", LONG * 4, || async {
        let listed = api.list(&ListParams::default()).await;
        let listed = listed.map_err(|error| error.to_string())?;
        let has_address = |service: &&Service| {
            let status = service.status.as_ref();
            let balancer = status.and_then(|it| it.load_balancer.as_ref());
            let ingress = balancer.and_then(|it| it.ingress.as_deref());
            let addresses = ingress.into_iter().flatten().map(|it| it.ip.as_deref());
            addresses.eq([Some(address.as_str())])
        };
        match listed.iter().filter(has_address).count() {
            CROWD => Ok(()),
            count => Err(count.to_string()),
        }
    })
    .await;
    for (port, service) in &services {
        front.sends_to(service, *port, &["n1"]).await?;
        answers(&cluster.outside(), front.outside.at(*port)).await;
    }
    ensure!(killed.is_some() && Some(highwire::leader(cluster).await?) != killed);
    front.was_asked_well()
}
