//! What is allowed and what is refused, and in which words.

use anyhow::{Result, ensure};
use highwire_e2e::cluster_test;
use macro_rules_attribute::apply;
use serde_json::{Value, json};

use super::{Tenancy, installed, load_balancer};

#[apply(cluster_test)]
async fn a_namespace_has_the_ports_of_its_annotation_and_no_others() -> Result<()> {
    let (tenancy, _scope) = installed("ten").await?;
    let Tenancy {
        ingress,
        team,
        other,
        ..
    } = &tenancy;
    for (namespace, ports) in [
        (ingress, &[80][..]),
        (ingress, &[443]),
        (ingress, &[443, 80]),
        (team, &[30000]),
        (team, &[30100]),
        (team, &[30000, 30050, 30100]),
        (other, &[1024]),
        (other, &[29999]),
    ] {
        for protocol in ["TCP", "UDP", "SCTP"] {
            let ports: Vec<_> = ports.iter().map(|port| (*port, protocol)).collect();
            tenancy.allowed(namespace, &ports).await?;
        }
    }
    for (namespace, port) in [
        (ingress, 79),
        (ingress, 81),
        (ingress, 8080),
        (team, 29999),
        (team, 30101),
        (team, 80),
        (other, 80),
        (other, 443),
        (other, 1023),
        (other, 30000),
        (other, 30050),
        (other, 65535),
    ] {
        for protocol in ["TCP", "UDP", "SCTP"] {
            let said = tenancy.refused(namespace, &[(port, protocol)]).await?;
            let named = format!("namespace {namespace} may not use {port}/{protocol} for");
            ensure!(said.contains(&named), "{said}");
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn who_is_refused_is_told_what_is_allowed_and_who_can_change_it() -> Result<()> {
    let (tenancy, _scope) = installed("tensay").await?;
    let Tenancy { team, other, .. } = &tenancy;
    // One port too many, and the whole Service is refused; those that may be had are not named.
    let ports = [(8080, "TCP"), (443, "TCP"), (53, "UDP")];
    let said = tenancy.refused(other, &ports).await?;
    let wanted = format!(
        "namespace {other} may not use 443/TCP, 53/UDP for LoadBalancer Services. It may use: \
         1024-29999. Who may edit the Namespace can change that by its annotation \
         highwire.dev/allowed-ports"
    );
    ensure!(said.contains(&wanted), "{said}");
    // Commas, blanks and line breaks are all the same.
    tenancy.annotate(team, Some(" 80,81\n443 \t 5-5,")).await?;
    tenancy.may_use(team, "80, 81, 443, 5-5").await;
    let ports = [(80, "TCP"), (81, "TCP"), (443, "TCP"), (5, "TCP")];
    tenancy.allowed(team, &ports).await?;
    tenancy.refused(team, &[(6, "TCP")]).await?;
    // Without the annotation it is one of the others.
    tenancy.annotate(team, None).await?;
    tenancy.may_use(team, "1024-29999").await;
    tenancy.allowed(team, &[(8080, "TCP")]).await
}

#[apply(cluster_test)]
async fn only_what_highwire_may_serve_is_asked() -> Result<()> {
    let (tenancy, _scope) = installed("tenclass").await?;
    let namespace = &tenancy.other;
    let with = |field: &str, value: Value| {
        let mut spec = load_balancer(&[(80, "TCP")]);
        spec[field] = value;
        spec
    };
    for class in ["highwire.dev/node", "highwire.dev/external"] {
        let spec = with("loadBalancerClass", json!(class));
        tenancy.refuses(namespace, spec).await?;
    }
    for class in ["example.com/cloud", "node"] {
        let answer = tenancy
            .ask(namespace, with("loadBalancerClass", json!(class)))
            .await?;
        ensure!(answer.status == 201, "{class}: {answer:?}");
    }
    for kind in ["ClusterIP", "NodePort"] {
        let spec = json!({ "type": kind, "ports": [{ "port": 80 }] });
        let answer = tenancy.ask(namespace, spec).await?;
        ensure!(answer.status == 201, "{kind}: {answer:?}");
    }
    let outside = json!({ "type": "ExternalName", "externalName": "example.com" });
    ensure!(tenancy.ask(namespace, outside).await?.status == 201);
    // What is invalid anyhow is refused for that.
    let answer = tenancy
        .ask(namespace, json!({ "type": "LoadBalancer" }))
        .await?;
    ensure!(
        answer.status == 422 && answer.text.contains("spec.ports"),
        "{answer:?}"
    );
    Ok(())
}
