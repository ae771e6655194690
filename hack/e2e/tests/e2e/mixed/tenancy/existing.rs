//! Services that were there before the policy, and how to find those that break it.

use anyhow::{Context, Result, ensure};
use highwire_e2e::expect::{LONG, serve, web, web_service};
use highwire_e2e::{Svc, cluster_test, wait_for};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

use super::{FOLDER, Tenancy};

/// Asks for a change; an error says what was said.
async fn changes(service: &Svc, patch: Value) -> Result<()> {
    service
        .patch(patch.clone())
        .await
        .map(drop)
        .context(patch.to_string())
}

async fn changes_not(service: &Svc, patch: Value) -> Result<()> {
    let refused = service.patch(patch.clone()).await;
    let said = format!("{:?}", refused.err().with_context(|| patch.to_string())?);
    ensure!(said.contains("may not use"), "{patch}: {said}");
    Ok(())
}

fn spec(fields: Value) -> Value {
    json!({ "spec": fields })
}

fn metadata(fields: Value) -> Value {
    json!({ "metadata": fields })
}

/// Exactly these ports.
fn tcp(ports: &[u16]) -> Value {
    let port = |port: &u16| json!({ "name": format!("tcp-{port}"), "port": port });
    spec(json!({ "ports": ports.iter().map(port).collect::<Vec<_>>() }))
}

#[apply(cluster_test)]
async fn an_old_service_keeps_its_ports_and_can_be_edited() -> Result<()> {
    let served = serve(web("tenold").await?).await?;
    let (service, scope, old) = (&served.service, &served.scope, served.port);
    let kept = metadata(json!({ "finalizers": ["example.com/kept"] }));
    changes(service, kept).await?;
    let second = scope.free_port()?;
    changes(service, tcp(&[old, second])).await?;
    let tenancy = Tenancy::install(&served.cluster, scope).await?;
    tenancy.annotate(&tenancy.other, Some("1-2")).await?;
    tenancy.may_use(&tenancy.other, "1-2").await;
    tenancy.refused(&tenancy.other, &[(old, "TCP")]).await?;

    // Everything but new ports.
    for change in [
        metadata(json!({ "labels": { "a": "b" }, "annotations": { "c": "d" } })),
        spec(json!({ "selector": { "app": "web" }, "sessionAffinity": "ClientIP" })),
        spec(json!({ "externalTrafficPolicy": "Local" })),
        spec(json!({ "externalTrafficPolicy": "Cluster" })),
    ] {
        changes(service, change).await?;
    }
    let mut renamed = tcp(&[old, second]);
    renamed["spec"]["ports"][0]["name"] = json!("renamed");
    renamed["spec"]["ports"][0]["targetPort"] = json!(8081);
    changes(service, renamed).await?;
    changes_not(service, tcp(&[old, second, 3])).await?;
    changes_not(service, tcp(&[3])).await?;
    let mut udp = tcp(&[old, old]);
    udp["spec"]["ports"][1]["name"] = json!("udp");
    udp["spec"]["ports"][1]["protocol"] = json!("UDP");
    changes_not(service, udp).await?;
    // What may be had comes in, and what goes is gone.
    changes(service, tcp(&[old, 2])).await?;
    changes_not(service, tcp(&[old, second])).await?;
    changes(service, tcp(&[old])).await?;

    // The controller writes the status.
    let one = json!({ "highwire.dev/max-addresses": "1" });
    changes(service, metadata(json!({ "annotations": one }))).await?;
    wait_for("a status with one address", LONG, || async {
        match service.ingress_ips().await {
            Ok(found) if found.len() == 1 => Ok(()),
            other => Err(other),
        }
    })
    .await;

    // With another type it has given its ports up.
    let balancer =
        |class: Option<&str>| spec(json!({ "type": "LoadBalancer", "loadBalancerClass": class }));
    let inside = spec(json!({ "type": "ClusterIP", "loadBalancerClass": null }));
    changes(service, spec(json!({ "type": "NodePort" }))).await?;
    changes_not(service, balancer(None)).await?;
    changes(service, balancer(Some("example.com/cloud"))).await?;
    changes(service, inside).await?;
    changes_not(service, balancer(Some("highwire.dev/node"))).await?;

    // It ends when its finalizer goes.
    service.delete().await?;
    ensure!(service.get().await?.metadata.deletion_timestamp.is_some());
    changes(service, metadata(json!({ "finalizers": null }))).await?;
    wait_for("it to be gone", LONG, || async {
        service.get().await.is_err()
    })
    .await;
    Ok(())
}

#[apply(cluster_test)]
async fn services_that_break_the_rule_are_found() -> Result<()> {
    let (cluster, scope) = web("tenfind").await?;
    let (good, bad) = (scope.free_port()?, scope.free_port()?);
    web_service(&scope, "good", good).await?;
    web_service(&scope, "bad", bad).await?;
    let classed = scope.service("classed").class("example.com/cloud");
    classed.load_balancer().tcp(bad, 8080).create().await?;
    scope.service("inside").tcp(bad, 8080).create().await?;
    let tenancy = Tenancy::install(&cluster, &scope).await?;
    let allowed = good.to_string();
    tenancy.annotate(&tenancy.other, Some(&allowed)).await?;
    tenancy.may_use(&tenancy.other, &allowed).await;

    // As docs/tenancy.md has it, for one namespace.
    let template = format!("-ogo-template-file={FOLDER}/as-new.gotemplate");
    let as_new = cluster.kubectl(&["get", "services", "-n", &tenancy.other, &template])?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("as-new.yaml");
    std::fs::write(&file, as_new)?;
    let file = file.to_str().context("not UTF-8")?;
    let said = cluster
        .kubectl(&["create", "--dry-run=server", "-f", file])
        .err()
        .context("nothing is found")?
        .to_string();
    let refused: Vec<_> = said
        .lines()
        .filter(|line| line.contains("is forbidden"))
        .collect();
    let [line] = refused.as_slice() else {
        anyhow::bail!("{said}");
    };
    ensure!(
        line.contains("services \"bad-") && line.contains(&format!("not use {bad}/TCP")),
        "{line}"
    );
    for passed in ["service/good-", "service/classed-"] {
        ensure!(said.contains(passed), "{said}");
    }
    ensure!(!said.contains("inside"), "{said}");
    Ok(())
}
