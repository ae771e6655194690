//! What is shipped, and what happens when an annotation or an expression is no good.

use anyhow::{Result, ensure};
use highwire_e2e::expect::LONG;
use highwire_e2e::{Cluster, cluster_test, highwire, wait_for};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams, PostParams};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

use super::{FOLDER, Tenancy, installed, load_balancer};

#[apply(cluster_test)]
async fn what_is_shipped_is_accepted_and_no_part_of_deploy() -> Result<()> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let folder = |folder| cluster.kubectl(&["apply", "--dry-run=server", "-f", folder]);
    let said = folder(FOLDER)?;
    ensure!(said.lines().count() == 2, "{said}");
    ensure!(!folder("deploy")?.contains("highwire-ports"));
    Ok(())
}

/// kube-controller-manager checks the types in expressions.
#[apply(cluster_test)]
async fn its_expressions_fit_the_types_of_services_and_namespaces() -> Result<()> {
    let (tenancy, _scope) = installed("tentype").await?;
    let get = ["get", "validatingadmissionpolicy", &tenancy.name, "-ojson"];
    let checked = wait_for("the types to be checked", LONG, || async {
        let policy: Value = serde_json::from_str(&tenancy.cluster.kubectl(&get)?)?;
        let seen = policy["status"]["observedGeneration"] == policy["metadata"]["generation"];
        ensure!(seen, "{:#}", policy["status"]);
        Ok(policy)
    })
    .await;
    let warnings = &checked["status"]["typeChecking"]["expressionWarnings"];
    ensure!(warnings.is_null(), "{warnings:#}");
    Ok(())
}

#[apply(cluster_test)]
async fn an_annotation_that_cannot_be_read_gives_no_port() -> Result<()> {
    let (tenancy, _scope) = installed("tenbad").await?;
    let Tenancy { team, other, .. } = &tenancy;
    for word in [
        "80-",
        "-80",
        "80:90",
        "80-90-100",
        "http",
        "*",
        "1024..2000",
        "100000",
        "0x50",
        "80;443",
        "８０",
    ] {
        let ports = format!("1-65535, {word}");
        tenancy.annotate(team, Some(&ports)).await?;
        // As JSON has it.
        let why = format!("nothing, since \\\"{word}\\\" is not a port or a range");
        tenancy.may_use(team, &why).await;
        tenancy.refused(team, &[(8080, "TCP")]).await?;
        // Other namespaces are not concerned.
        tenancy.allowed(other, &[(8080, "TCP")]).await?;
    }
    tenancy.annotate(team, Some(&"1,".repeat(501))).await?;
    let why = "a text of more than 1000 characters";
    let why = format!("nothing, since \\\"{why}\\\" is not a port or a range");
    tenancy.may_use(team, &why).await;
    // There is no port in them.
    for (ports, said) in [
        ("", "nothing"),
        (" , ", "nothing"),
        ("9000-8000", "9000-8000"),
    ] {
        tenancy.annotate(team, Some(ports)).await?;
        tenancy.may_use(team, said).await;
        for port in [8000, 8500, 9000] {
            tenancy.refused(team, &[(port, "TCP")]).await?;
        }
    }
    Ok(())
}

/// `failurePolicy: Fail`: what the API server gives up on is refused, and nothing else is.
#[apply(cluster_test)]
async fn what_is_too_much_to_evaluate_is_refused() -> Result<()> {
    let (tenancy, _scope) = installed("tenfail").await?;
    let Tenancy { team, other, .. } = &tenancy;
    let ports: Vec<(u16, &str)> = (0..400).map(|it| (20_000 + it, "TCP")).collect();
    // Of that class, and with no box: no node serves it.
    let mut many = load_balancer(&ports);
    many["loadBalancerClass"] = json!("highwire.dev/external");
    let services: Api<Service> = Api::namespaced(tenancy.cluster.client(), other);
    let old = json!({ "metadata": { "name": "old" }, "spec": many });
    let old = serde_json::from_value(old)?;
    services.create(&PostParams::default(), &old).await?;
    // As many ranges as there may be.
    tenancy.annotate(other, Some(&"1,".repeat(500))).await?;
    wait_for("a refusal for the cost", LONG, || async {
        let answer = tenancy.ask(other, many.clone()).await?;
        let cost = answer.text.contains("cost limit exceeded");
        ensure!(answer.status == 422 && cost, "{answer:?}");
        anyhow::Ok(())
    })
    .await;
    // The same ports cost nothing in an old Service.
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    services
        .patch("old", &PatchParams::default(), &Patch::Merge(&label))
        .await?;
    tenancy.allowed(other, &[(1, "TCP")]).await?;
    tenancy.allowed(team, &[(30000, "TCP")]).await
}

#[apply(cluster_test)]
async fn a_binding_that_only_warns_refuses_nothing() -> Result<()> {
    let (tenancy, _scope) = installed("tenwarn").await?;
    let patch = json!({ "spec": { "validationActions": ["Warn"] } }).to_string();
    let binding = "validatingadmissionpolicybinding";
    let patch = [
        "patch",
        binding,
        &tenancy.name,
        "--type=merge",
        "-p",
        &patch,
    ];
    tenancy.cluster.kubectl(&patch)?;
    let answer = wait_for("a warning", LONG, || async {
        let answer = tenancy
            .ask(&tenancy.other, load_balancer(&[(80, "TCP")]))
            .await?;
        ensure!(answer.status == 201, "{answer:?}");
        Ok(answer)
    })
    .await;
    let warned = answer.warning.contains("may not use 80/TCP");
    ensure!(warned, "{answer:?}");
    Ok(())
}

#[apply(cluster_test)]
async fn a_policy_that_was_removed_can_be_applied_again() -> Result<()> {
    let (tenancy, _scope) = installed("tenagain").await?;
    tenancy.remove()?;
    wait_for("every port to be allowed", LONG, || async {
        tenancy.allowed(&tenancy.other, &[(80, "TCP")]).await
    })
    .await;
    tenancy.annotate(&tenancy.other, Some("81")).await?;
    tenancy.apply()?;
    tenancy.may_use(&tenancy.other, "81").await;
    tenancy.allowed(&tenancy.other, &[(81, "TCP")]).await
}
