//! Services that other load balancers serve, and those two programs write to.

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::bed::browser::load;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, answers, ingress_is, refuses, web, web_pods, web_service};
use highwire_e2e::reported::event;
use highwire_e2e::{PrivateCluster, Scope, Svc, highwire, wait_for};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

/// What a cloud's controller would write.
fn foreign() -> Value {
    json!([{"ip": "198.51.100.77", "ipMode": "VIP"}])
}

async fn status_of(service: &Svc) -> Result<Value> {
    Ok(serde_json::to_value(service.get().await?.status)?)
}

#[apply(cluster_test)]
async fn what_another_load_balancer_serves_survives_the_apply_until_it_is_handed_over() -> Result<()>
{
    let cluster = PrivateCluster::up("lbs", 2).await?;
    let scope = Scope::new(&cluster, "own").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    let taken = web_service(&scope, "taken", port).await?;
    taken.write_ingress("cloud", foreign()).await?;
    let (before, version) = (
        status_of(&taken).await?,
        taken.get().await?.metadata.resource_version,
    );

    highwire::start(&cluster).await?;
    let said = event(&scope, &taken, "ManagedElsewhere").await;
    ensure!(
        said.contains("cloud") && said.contains("highwire.dev/adopt=true"),
        "{said}"
    );
    // A Service of the same port is served: the other one claims nothing here.
    let ours = web_service(&scope, "ours", port).await?;
    ingress_is(&ours, &BOTH).await;
    let leader = cluster.controller(&highwire::leader(&cluster).await?)?;
    wait_for("the metric", LONG, || async {
        let series = "highwire_controller_services{state=\"managed_elsewhere\"}";
        match leader.metric(series) {
            Ok(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let page = load(leader.netns(), &format!("http://{}/", leader.admin()))?;
    let row = format!("<th scope=\"row\">{}/taken</th>", scope.namespace());
    let rows = page.split("<tr");
    let row = rows.into_iter().find(|text| text.contains(&row));
    ensure!(
        row.is_some_and(|row| row.contains(">foreign<") && row.contains("cloud")),
        "{page}"
    );
    let explained = cluster.agent("n1")?.explain(&[])?;
    let line = format!("Service {}/taken: ", scope.namespace());
    ensure!(
        explained
            .lines()
            .any(|found| found.starts_with(&line) && found.contains("cloud")),
        "{explained}"
    );
    ours.delete().await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    refuses(&client, to).await;
    ensure!(
        (
            status_of(&taken).await?,
            taken.get().await?.metadata.resource_version
        ) == (before, version),
        "its status was written"
    );

    // The documented line hands it over.
    cluster.kubectl(&[
        "annotate",
        "service",
        "-n",
        scope.namespace(),
        "taken",
        "highwire.dev/adopt=true",
    ])?;
    ingress_is(&taken, &BOTH).await;
    answers(&client, to).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_service_that_another_load_balancer_takes_over_is_let_go() -> Result<()> {
    let (cluster, scope) = web("letgo").await?;
    let port = scope.free_port()?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    let (client, to) = (cluster.outside(), cluster.node("n2")?.v4(port));
    answers(&client, to).await;
    service.write_ingress("cloud", foreign()).await?;
    refuses(&client, to).await;
    ingress_is(&service, &["198.51.100.77"]).await;
    event(&scope, &service, "ManagedElsewhere").await;
    // It gives the Service back by clearing what it wrote.
    service.write_ingress("cloud", Value::Null).await?;
    ingress_is(&service, &BOTH).await;
    answers(&client, to).await;
    Ok(())
}

#[apply(cluster_test)]
async fn two_programs_do_not_fight_for_a_status() -> Result<()> {
    let (_cluster, scope) = web("fight").await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().select("app", "web");
    let service = service.class("highwire.dev/node").tcp(port, 8080).create();
    let service = service.await?;
    ingress_is(&service, &BOTH).await;
    service.write_ingress("cloud", foreign()).await?;
    ingress_is(&service, &BOTH).await;
    service.write_ingress("cloud", foreign()).await?;
    let said = event(&scope, &service, "ManagedElsewhere").await;
    ensure!(said.contains("cloud replaced its addresses"), "{said}");
    // Another event of the Service changes nothing.
    let edited = json!({"metadata": {"labels": {"edited": "true"}}});
    service.patch(edited).await?;
    ingress_is(
        &web_service(&scope, "later", scope.free_port()?).await?,
        &BOTH,
    )
    .await;
    ensure!(
        service.ingress_ips().await? == ["198.51.100.77"],
        "it was written again"
    );
    Ok(())
}
