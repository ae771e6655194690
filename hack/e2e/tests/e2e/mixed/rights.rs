//! What each program's token may do: exactly the rights of deploy/, as the API server has them,
//! and nothing that would lead to more.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::{Cluster, highwire, manifests};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

use super::agent_policy::{Holder, RBAC};

/// The namespace of Highwire, and any other.
const NAMESPACES: [&str; 2] = ["highwire-system", "default"];

/// Each program's account, and the file that gives it its rights.
const ACCOUNTS: [(&str, &str); 3] = [
    ("highwire-agent", "deploy/20-rbac-agent.yaml"),
    ("highwire-controller", "deploy/21-rbac-controller.yaml"),
    ("highwire-edge", "deploy/22-rbac-edge.yaml"),
];

/// Everybody may ask who they are and what they may do.
const EVERYBODYS: [&str; 2] = ["authentication.k8s.io", "authorization.k8s.io"];

/// A verb for a resource of a group; of one object, if it is named.
type Right = (String, String, String, Option<String>);

fn words(rule: &Value, field: &str) -> Vec<String> {
    let all = rule[field].as_array().into_iter().flatten();
    all.filter_map(|it| it.as_str().map(str::to_owned))
        .collect()
}

fn rights<'a>(rules: impl IntoIterator<Item = &'a Value>) -> BTreeSet<Right> {
    let mut all = BTreeSet::new();
    for rule in rules {
        let names = words(rule, "resourceNames");
        let names: Vec<Option<String>> = match names.is_empty() {
            true => vec![None],
            false => names.into_iter().map(Some).collect(),
        };
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                for verb in words(rule, "verbs") {
                    let right = |name: &Option<String>| {
                        (group.clone(), resource.clone(), verb.clone(), name.clone())
                    };
                    all.extend(names.iter().map(right));
                }
            }
        }
    }
    all
}

/// What the file gives within a namespace.
fn given(cluster: &Cluster, file: &str, namespace: &str) -> Result<BTreeSet<Right>> {
    let objects = manifests::objects(cluster, Path::new(file))?;
    let is_there = |object: &&Value| match object["kind"].as_str() {
        Some("ClusterRole") => true,
        Some("Role") => object["metadata"]["namespace"] == namespace,
        _ => false,
    };
    let roles = objects.iter().filter(is_there);
    Ok(rights(roles.flat_map(|it| {
        it["rules"].as_array().into_iter().flatten()
    })))
}

async fn holder(cluster: &Cluster, account: &str) -> Result<Holder> {
    let token = cluster.kubectl(&["create", "token", account, "-nhighwire-system"])?;
    Holder::with(cluster, token.trim()).await
}

#[apply(cluster_test)]
async fn a_token_has_the_rights_of_deploy_and_no_others() -> Result<()> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    for (account, file) in ACCOUNTS {
        let holder = holder(&cluster, account).await?;
        for namespace in NAMESPACES {
            let question = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
                "spec": { "namespace": namespace },
            });
            let answer = holder.answer("POST", path, &question).await?;
            let status = &answer["status"];
            ensure!(status["incomplete"] == false, "{account}: {answer}");
            let rules = status["resourceRules"].as_array().context("no rules")?;
            let mut found = rights(rules);
            found.retain(|(group, ..)| !EVERYBODYS.contains(&group.as_str()));
            let given = given(&cluster, file, namespace)?;
            ensure!(
                !given.is_empty() && found == given,
                "{account} in {namespace}: {:?} are more or less than {file} says",
                found.symmetric_difference(&given).collect::<Vec<_>>()
            );
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_token_leads_to_no_other_rights() -> Result<()> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let in_both = |path: &str| NAMESPACES.map(|name| format!("/api/v1/namespaces/{name}/{path}"));
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    for (account, _) in ACCOUNTS {
        let holder = holder(&cluster, account).await?;
        let no = async |method: &str, path: &str| {
            let refused = holder.may_not(method, path, &json!({}), RBAC).await;
            refused.context(account)
        };
        // More Pods, in one or as one, another's token, and rights themselves.
        for path in [
            in_both("pods"),
            in_both("pods/any/exec"),
            in_both("serviceaccounts/default/token"),
        ]
        .as_flattened()
        {
            no("POST", path).await?;
        }
        no("POST", &format!("{roles}/clusterrolebindings")).await?;
        let role = format!("{roles}/clusterroles/{account}");
        no("PATCH", &role).await?;
        no("POST", policies).await?;
        let policy = format!("{policies}/{account}");
        no("PATCH", &policy).await?;
        no("DELETE", &policy).await?;
        let daemonset = "/apis/apps/v1/namespaces/highwire-system/daemonsets/highwire-agent";
        no("PATCH", daemonset).await?;
        // What others wrote down.
        for path in [in_both("secrets"), in_both("configmaps")].as_flattened() {
            no("GET", path).await?;
        }
        for path in ["/api/v1/secrets", "/api/v1/nodes/n1/proxy/pods"] {
            no("GET", path).await?;
        }
        // Nodes, and Services but for their status.
        no("PATCH", "/api/v1/nodes/n1").await?;
        no("PATCH", "/api/v1/nodes/n1/status").await?;
        no("PATCH", "/api/v1/namespaces/default/services/kubernetes").await?;
        let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        no("POST", slices).await?;
        let external = "/apis/highwire.dev/v1alpha1/externalloadbalancers";
        no("POST", external).await?;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn only_a_controller_speaks_of_services() -> Result<()> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let status = "/api/v1/namespaces/default/services/kubernetes/status";
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let balancers = "/apis/highwire.dev/v1alpha1/namespaces/default/loadbalancers";
    for account in ["highwire-agent", "highwire-edge"] {
        let holder = holder(&cluster, account).await?;
        for (method, path) in [("PATCH", status), ("POST", events), ("POST", balancers)] {
            let refused = holder.may_not(method, path, &json!({}), RBAC).await;
            refused.context(account)?;
        }
        let secret = "/api/v1/namespaces/highwire-system/secrets/any";
        holder.may_not("GET", secret, &Value::Null, RBAC).await?;
    }
    let controller = holder(&cluster, "highwire-controller").await?;
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": { "name": "said", "namespace": "default" },
        "eventTime": "2026-01-02T03:04:05.000000Z", "action": "Report", "reason": "Said",
        "reportingController": "highwire.dev/controller", "reportingInstance": "c1",
        "regarding": { "apiVersion": "v1", "kind": "Service", "name": "kubernetes",
                       "namespace": "default" },
        "type": "Normal", "note": "said",
    });
    controller.may("POST", events, &event).await?;
    controller
        .may_not("PATCH", &format!("{events}/said"), &event, RBAC)
        .await?;
    let own = "/apis/coordination.k8s.io/v1/namespaces/highwire-system/leases";
    for name in ["agent-n1", "edge-box"] {
        let path = format!("{own}/{name}");
        let label = json!({ "metadata": { "labels": { "a": "b" } } });
        controller.may_not("PATCH", &path, &label, RBAC).await?;
        controller
            .may_not("DELETE", &path, &Value::Null, RBAC)
            .await?;
    }
    Ok(())
}
