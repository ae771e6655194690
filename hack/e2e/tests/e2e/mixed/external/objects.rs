//! ExternalLoadBalancers that are wrong, change or go.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::bed::external::ExternalLoadBalancer;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, answers, ingress_is, refuses};
use highwire_e2e::reported::event;
use highwire_e2e::{Cluster, OutsideBox, Scope, wait_for};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

use super::front::{ANNOTATION, Front};

#[apply(cluster_test)]
async fn the_api_server_refuses_what_makes_no_sense_and_says_why() -> Result<()> {
    let cluster = Cluster::attach().await?;
    let scope = Scope::new(&cluster, "senseless").await?;
    let range = |low: u32, high: u32| json!({ "low": low, "high": high });
    let ports = |of: Value| json!({ "ports": of });
    let of_range = |range: Value| ports(json!({ "type": "Range", "range": range }));
    for (spec, words) in [
        (of_range(range(9, 8)), "low must not be above high"),
        (of_range(range(0, 8)), "greater than or equal to 1"),
        (of_range(range(8, 70_000)), "less than or equal to 65535"),
        (
            ports(json!({ "type": "Range" })),
            "range goes with type Range",
        ),
        (
            ports(json!({ "range": range(8, 9) })),
            "range goes with type Range",
        ),
        (
            json!({ "httpUpdater": { "url": "ftp://box" } }),
            "begins with http://",
        ),
        (
            json!({ "httpUpdater": { "url": "box" } }),
            "begins with http://",
        ),
        (json!({ "addresses": [] }), "at least 1"),
        (
            json!({ "addresses": ["https://box"] }),
            "IP addresses or host names",
        ),
        (
            json!({ "targetAddressType": "Hostname" }),
            "Unsupported value",
        ),
    ] {
        let mut whole = json!({
            "addresses": ["lb.example", "192.0.2.1", "2001:db8::1"],
            "httpUpdater": { "url": "http://box" },
        });
        whole.as_object_mut().into_iter().for_each(|fields| {
            fields.extend(spec.as_object().cloned().unwrap_or_default());
        });
        let made = ExternalLoadBalancer::create(&cluster, scope.namespace(), whole).await;
        let error = made.err().map(|error| format!("{error:#}"));
        let error = error.unwrap_or_else(|| format!("{spec} was taken"));
        ensure!(error.contains(words), "{spec}: {error}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_service_follows_its_box_to_another_and_loses_its_address_with_it() -> Result<()> {
    let front = Front::new("moving").await?;
    let port = front.scope.free_port()?;
    let service = front.served("web", port).await?;
    let backend = front.backend(&service, port, "tcp");
    let other = OutsideBox::start(&front.cluster).await?;
    let spec = json!({ "addresses": [other.v4()], "httpUpdater": { "url": other.url() } });
    front.balancer.patch(json!({ "spec": spec })).await?;
    ingress_is(&service, &[&other.v4().to_string()]).await;
    let client = front.cluster.outside();
    answers(&client, other.at(port)).await;
    front.has_backends(&[]).await;
    refuses(&client, front.outside.at(port)).await;
    ensure!(other.nginx().backends() == [backend]);

    let name = format!(
        "externalloadbalancers.highwire.dev/{}",
        front.balancer.name()
    );
    front.cluster.kubectl(&["delete", &name, "--timeout=20s"])?;
    ingress_is(&service, &[]).await;
    let said = event(&front.scope, &service, "NoExternalLoadBalancer").await;
    ensure!(
        said.contains(ANNOTATION) && said.contains("create it"),
        "{said}"
    );
    wait_for("the box to be empty", LONG, || async {
        let found = other.nginx().backends();
        if found.is_empty() { Ok(()) } else { Err(found) }
    })
    .await;
    refuses(&client, other.at(port)).await;
    front.was_asked_well()
}

#[apply(cluster_test)]
async fn a_slow_updater_gets_the_last_word_last() -> Result<()> {
    let front = Front::new("slow").await?;
    let port = front.scope.free_port()?;
    let service = front.served("web", port).await?;
    let updater = front.outside.updater();
    updater.forget_requests();
    updater.delay(Duration::from_secs(1));
    let backend = front.backend(&service, port, "tcp");
    // Each set of nodes is wanted while another one is being written.
    for nodes in ["n1", "n2", "n1, n2"] {
        let selector = format!("kubernetes.io/hostname in ({nodes})");
        let annotation = json!({ "highwire.dev/node-selector": selector });
        let patch = json!({ "metadata": { "annotations": annotation } });
        service.patch(patch).await?;
        wait_for("a request that lasts", LONG, || async {
            let asked = updater.requests_for(&backend);
            asked.iter().any(|it| it.ended.is_none())
        })
        .await;
    }
    front.sends_to(&service, port, &["n1", "n2"]).await?;
    updater.delay(Duration::ZERO);
    front.has_address(&service).await;
    front.was_asked_well()
}
