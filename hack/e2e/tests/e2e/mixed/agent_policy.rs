//! An agent speaks for its own node only, the agent of a box for boxes, and a controller writes
//! nothing of Services but their status: each write that is refused, and each that is not, against the real API server with the tokens that the agents have.

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::bed::external::load_balancer;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::LONG;
use highwire_e2e::{Cluster, Program, Scope, highwire, wait_for};
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use macro_rules_attribute::apply;
use serde_json::{Value, json};

use super::external::front::{ANNOTATION, CLASS};

/// Whoever has the token of a program. Nothing that it writes is kept: the API server
/// answers as if it were meant.
pub(super) struct Holder(Client);

impl Holder {
    async fn of(cluster: &Cluster, program: &Program) -> Result<Self> {
        program.kubeconfig().await?;
        let token = std::fs::read_to_string(program.token_file())?;
        Self::with(cluster, &token).await
    }

    pub(super) async fn with(cluster: &Cluster, token: &str) -> Result<Self> {
        Ok(Self(cluster.client_with(token).await?))
    }

    /// What the API server answers, if it does what it was asked for.
    pub(super) async fn answer(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let answer = self.ask(method, path, body).await?;
        let status = answer.status();
        let text = text(answer).await?;
        ensure!(status.is_success(), "{method} {path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Response<Body>> {
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes())?)
            .uri(format!("{path}?dryRun=All"))
            .header(
                "Content-Type",
                match method {
                    "PATCH" => "application/merge-patch+json",
                    _ => "application/json",
                },
            );
        let body = match method {
            "DELETE" => Vec::new(),
            _ => serde_json::to_vec(body)?,
        };
        Ok(self.0.send(request.body(Body::from(body))?).await?)
    }

    pub(super) async fn may(&self, method: &str, path: &str, body: &Value) -> Result<()> {
        self.answer(method, path, body).await.map(drop)
    }

    pub(super) async fn may_not(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        why: &str,
    ) -> Result<()> {
        let answer = self.ask(method, path, body).await?;
        let status = answer.status();
        let text = text(answer).await?;
        ensure!(
            status == 403 && text.contains(why),
            "{method} {path}: {status} {text}, and not {why:?}"
        );
        Ok(())
    }
}

async fn text(answer: Response<Body>) -> Result<String> {
    let bytes = answer.into_body().collect_bytes().await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const REPORTS: &str = "/apis/highwire.dev/v1alpha1/loadbalancernodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/highwire-system/leases";
const POLICY: &str = "ValidatingAdmissionPolicy 'highwire-agent'";
pub(super) const RBAC: &str = "cannot";

fn report(name: &str) -> Value {
    json!({
        "apiVersion": "highwire.dev/v1alpha1", "kind": "LoadBalancerNode",
        "metadata": { "name": name }, "spec": {},
    })
}

fn lease(name: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name, "namespace": "highwire-system" },
        "spec": { "holderIdentity": "me", "leaseDurationSeconds": 12 },
    })
}

fn label() -> Value {
    json!({ "metadata": { "labels": { "a": "b" } } })
}

async fn cluster() -> Result<Cluster> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    wait_for("all reports and Leases", LONG, || async {
        cluster.kubectl(&["get", "lbn", "n1", "n2"])?;
        cluster.kubectl(&["get", "lease", "-nhighwire-system", "agent-n1", "agent-n2"])
    })
    .await;
    Ok(cluster)
}

#[apply(cluster_test)]
async fn an_agent_writes_what_is_its_own_nodes_and_nothing_else() -> Result<()> {
    let cluster = cluster().await?;
    let n1 = Holder::of(&cluster, &cluster.agent("n1")?).await?;
    let (own_report, own_lease) = (format!("{REPORTS}/n1"), format!("{LEASES}/agent-n1"));
    let status = json!({ "status": { "observedResourceVersion": "9" } });

    n1.may("PATCH", &own_report, &label()).await?;
    n1.may("PATCH", &format!("{own_report}/status"), &status)
        .await?;
    n1.may("PATCH", &own_lease, &label()).await?;
    n1.may("DELETE", &own_report, &Value::Null).await?;
    n1.may("DELETE", &own_lease, &Value::Null).await?;

    for other in ["n2", "n1x"] {
        n1.may_not("POST", REPORTS, &report(other), POLICY).await?;
        let lease = lease(&format!("agent-{other}"));
        n1.may_not("POST", LEASES, &lease, POLICY).await?;
    }
    let other = format!("{REPORTS}/n2");
    n1.may_not("PATCH", &other, &label(), POLICY).await?;
    n1.may_not("PATCH", &format!("{other}/status"), &status, POLICY)
        .await?;
    n1.may_not("DELETE", &other, &Value::Null, POLICY).await?;
    // The other agent's, and the controllers' election.
    for name in ["agent-n2", "highwire-controller"] {
        let path = format!("{LEASES}/{name}");
        n1.may_not("PUT", &path, &current(&cluster, name)?, POLICY)
            .await?;
        n1.may_not("PATCH", &path, &label(), POLICY).await?;
        n1.may_not("DELETE", &path, &Value::Null, POLICY).await?;
    }
    n1.may("PUT", &own_lease, &current(&cluster, "agent-n1")?)
        .await
        .or_else(renewed_meanwhile)?;
    n1.may_not("POST", LEASES, &lease("highwire-controller"), POLICY)
        .await?;
    // What it has no rights to at all.
    n1.may_not("DELETE", REPORTS, &Value::Null, RBAC).await?;
    n1.may_not("DELETE", LEASES, &Value::Null, RBAC).await?;
    let elsewhere = LEASES.replace("highwire-system", "kube-system");
    n1.may_not("POST", &elsewhere, &Value::Null, RBAC).await?;

    let c1 = Holder::of(&cluster, &cluster.controller("c1")?).await?;
    let election = format!("{LEASES}/highwire-controller");
    c1.may("PATCH", &election, &label()).await?;
    c1.may_not("PATCH", &own_lease, &label(), RBAC).await?;
    c1.may_not("PATCH", &own_report, &label(), RBAC).await?;
    // People are not agents.
    cluster.kubectl(&["label", "lbn", "n2", "a=b", "--dry-run=server"])?;
    Ok(())
}

#[apply(cluster_test)]
async fn a_controller_writes_the_status_of_services_and_nothing_else_of_them() -> Result<()> {
    let cluster = cluster().await?;
    let scope = Scope::new(&cluster, "rights").await?;
    let service = scope
        .service("web")
        .load_balancer()
        .class("elsewhere.example/lb");
    service.tcp(80, 8080).create().await?;
    let c1 = Holder::of(&cluster, &cluster.controller("c1")?).await?;
    let path = format!("/api/v1/namespaces/{}/services/web", scope.namespace());
    let status = format!("{path}/status");
    let ingress = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.11" }] } } });
    c1.may("PATCH", &status, &ingress).await?;
    let policy = "ValidatingAdmissionPolicy 'highwire-controller'";
    for metadata in [
        json!({ "labels": { "a": "b" } }),
        json!({ "annotations": { "external-dns.alpha.kubernetes.io/hostname": "bank.example" } }),
        json!({ "finalizers": ["example.org/stays"] }),
        json!({ "ownerReferences": [
            { "apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "1" }
        ] }),
    ] {
        let lie = json!({ "metadata": metadata });
        c1.may_not("PATCH", &status, &lie, policy).await?;
    }
    // What it has no rights to at all.
    c1.may_not("PATCH", &path, &label(), RBAC).await?;
    c1.may_not("DELETE", &path, &Value::Null, RBAC).await?;
    for path in [
        "/api/v1/nodes",
        "/api/v1/namespaces/default/pods",
        "/api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/default/configmaps",
    ] {
        c1.may_not("POST", path, &json!({}), RBAC).await?;
    }
    let secrets = "/api/v1/namespaces/kube-system/secrets/any";
    c1.may_not("GET", secrets, &Value::Null, RBAC).await?;
    Ok(())
}

/// The Lease as it is, to be replaced.
fn current(cluster: &Cluster, name: &str) -> Result<Value> {
    let lease = ["get", "lease", name, "-nhighwire-system", "-ojson"];
    Ok(serde_json::from_str(&cluster.kubectl(&lease)?)?)
}

/// The running agent writes the same Lease: a conflict is no refusal.
fn renewed_meanwhile(error: anyhow::Error) -> Result<()> {
    match error.to_string() {
        text if text.contains("409") => Ok(()),
        _ => Err(error),
    }
}

#[apply(cluster_test)]
async fn a_token_that_names_no_node_writes_nothing() -> Result<()> {
    let cluster = cluster().await?;
    // As from an older API server, or of one who made a token by hand.
    let token = cluster.kubectl(&["create", "token", "highwire-agent", "-nhighwire-system"])?;
    let nobody = Holder::with(&cluster, token.trim()).await?;
    let why = "does not say on which node it runs";
    for path in [format!("{REPORTS}/n1"), format!("{LEASES}/agent-n1")] {
        nobody.may_not("PATCH", &path, &label(), why).await?;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn the_agent_of_a_box_speaks_for_boxes_only() -> Result<()> {
    let cluster = cluster().await?;
    let scope = Scope::new(&cluster, "speaks").await?;
    let service = scope.service("web").load_balancer().class(CLASS);
    // There is no such box; its LoadBalancer says so.
    let service = service.annotation(ANNOTATION, "nowhere").tcp(80, 8080);
    let service = service.create().await?;
    let account = ["create", "token", "highwire-edge", "-n", "highwire-system"];
    let token = cluster.kubectl(&account)?;
    let agent = Holder::with(&cluster, token.trim()).await?;
    let lease = |name: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": name }, "spec": {},
        })
    };
    let policy = "ValidatingAdmissionPolicy 'highwire-edge'";
    agent.may("POST", LEASES, &lease("edge-front")).await?;
    for name in ["agent-n1", "highwire-controller", "front"] {
        agent.may_not("POST", LEASES, &lease(name), policy).await?;
    }
    for name in ["agent-n1", "highwire-controller"] {
        let path = format!("{LEASES}/{name}");
        agent.may_not("PATCH", &path, &label(), policy).await?;
    }
    let path = format!(
        "/apis/highwire.dev/v1alpha1/namespaces/{}/loadbalancers/web/status",
        scope.namespace()
    );
    let conditions = wait_for("its LoadBalancer's conditions", LONG, || async {
        let object = load_balancer(&cluster, &service).await?;
        let conditions = object["status"]["conditions"].as_array();
        conditions.cloned().context("none yet")
    })
    .await;
    let stated = |type_: &str, mut before: Vec<Value>| {
        before.retain(|one| one["type"] != type_);
        before.push(json!({
            "type": type_, "status": "True", "reason": "Programmed", "message": "",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }));
        json!({ "status": { "conditions": before } })
    };
    let found = stated("EdgeReady", conditions.clone());
    agent.may("PATCH", &path, &found).await?;
    let lie = stated("Ready", conditions);
    agent.may_not("PATCH", &path, &lie, policy).await?;
    let addresses = json!({ "status": { "addresses": ["198.51.100.7"] } });
    agent.may_not("PATCH", &path, &addresses, policy).await?;
    Ok(())
}

#[apply(cluster_test)]
async fn leases_and_reports_have_a_priority_of_their_own() -> Result<()> {
    let cluster = cluster().await?;
    let uid = |name: &str| {
        let uid = ["get", "flowschema", name, "-ojsonpath={.metadata.uid}"];
        cluster.kubectl(&uid)
    };
    let (leases, reports) = (uid("highwire")?, uid("highwire-reports")?);
    let agent = Holder::of(&cluster, &cluster.agent("n1")?).await?;
    let controller = Holder::of(&cluster, &cluster.controller("c1")?).await?;
    for (holder, path, uid) in [
        (&agent, format!("{REPORTS}/n1/status"), &reports),
        (&agent, format!("{LEASES}/agent-n1"), &leases),
        (
            &controller,
            format!("{LEASES}/highwire-controller"),
            &leases,
        ),
    ] {
        let answer = holder.ask("PATCH", &path, &label()).await?;
        let flow = answer.headers().get("X-Kubernetes-PF-FlowSchema-UID");
        let flow = flow.context("no flow")?.to_str()?;
        ensure!(flow == uid, "{path} is in the flow {flow} and not in {uid}");
    }
    Ok(())
}
