//! `deploy/tenancy/`: which namespaces may ask for which ports, on a real API server.
//!
//! Each test has a policy of its own, with other names, that is bound to the test's namespaces
//! only. What is not about an existing Service is a dry run, which admission treats as a
//! write: nothing here takes port 80 from other tests.

mod annotations;
mod existing;
mod rules;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use highwire_e2e::expect::LONG;
use highwire_e2e::lab::test_run::{self, Leftover};
use highwire_e2e::{Cluster, Scope, manifests, wait_for};
use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, Patch, PatchParams};
use kube::client::Body;
use serde_json::{Value, json};

const FOLDER: &str = "deploy/tenancy";
/// Of the policy and its binding.
const NAME: &str = "highwire-ports";

/// A policy as shipped, for the namespaces of one test.
struct Tenancy {
    cluster: Cluster,
    /// Of the policy and its binding.
    name: String,
    /// A namespace without an annotation.
    other: String,
    /// It may use 80 and 443.
    ingress: String,
    /// It may use 30000 to 30100.
    team: String,
}

/// What the API server says to a write.
#[derive(Debug)]
struct Answer {
    status: u16,
    text: String,
    warning: String,
}

impl Tenancy {
    /// In force when this returns.
    async fn install(cluster: &Cluster, scope: &Scope) -> Result<Self> {
        let other = scope.namespace().to_owned();
        let tenancy = Self {
            cluster: cluster.clone(),
            name: format!("{NAME}-{other}"),
            ingress: format!("{other}-ingress"),
            team: format!("{other}-team-a"),
            other,
        };
        for (namespace, ports) in [
            (&tenancy.ingress, "80, 443"),
            (&tenancy.team, "30000-30100"),
        ] {
            cluster.kubectl(&["create", "namespace", namespace])?;
            tenancy.annotate(namespace, Some(ports)).await?;
        }
        tenancy.apply()?;
        for (namespace, ports) in [
            (&tenancy.ingress, "80, 443"),
            (&tenancy.team, "30000-30100"),
            (&tenancy.other, "1024-29999"),
        ] {
            tenancy.may_use(namespace, ports).await;
        }
        Ok(tenancy)
    }

    /// A shipped object under the test's name.
    fn own(&self, object: &Value) -> Result<Value> {
        let mut object: Value =
            serde_json::from_str(&object.to_string().replace(NAME, &self.name))?;
        if object["kind"] == "ValidatingAdmissionPolicyBinding" {
            let own = json!({
                "key": "kubernetes.io/metadata.name", "operator": "In",
                "values": [&self.ingress, &self.team, &self.other],
            });
            object["spec"]["matchResources"] =
                json!({ "namespaceSelector": { "matchExpressions": [own] } });
        }
        Ok(object)
    }

    /// Applies policy and binding. They take a moment to be in force.
    fn apply(&self) -> Result<()> {
        let objects = manifests::objects(&self.cluster, Path::new(FOLDER))?;
        ensure!(objects.len() == 2, "{objects:?}");
        let objects = objects.iter().map(|object| self.own(object));
        let folder = tempfile::tempdir()?;
        let file = manifests::write(folder.path(), &objects.collect::<Result<Vec<_>>>()?)?;
        let file = file.to_str().context("not UTF-8")?;
        self.cluster.kubectl(&["apply", "-f", file]).map(drop)
    }

    /// Removes policy and binding.
    fn remove(&self) -> Result<()> {
        delete(&self.cluster, &self.objects())
    }

    /// Policy and binding.
    fn objects(&self) -> Vec<String> {
        ["policybinding", "policy"]
            .map(|kind| format!("validatingadmission{kind}/{}", self.name))
            .to_vec()
    }

    /// Says what a namespace may use, or nothing about it. It takes a moment to count.
    async fn annotate(&self, namespace: &str, ports: Option<&str>) -> Result<()> {
        let annotation = json!({ "highwire.dev/allowed-ports": ports });
        let patch = json!({ "metadata": { "annotations": annotation } });
        let namespaces: Api<Namespace> = Api::all(self.cluster.client());
        namespaces
            .patch(namespace, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .context("annotate the Namespace")
    }

    /// Waits until a refusal says that.
    async fn may_use(&self, namespace: &str, ports: &str) {
        let wanted = format!("It may use: {ports}. Who may edit the Namespace");
        wait_for(&format!("{namespace}: {wanted}"), LONG, || async {
            // No case gives anyone this port.
            let said = self.refused(namespace, &[(9, "TCP")]).await?;
            ensure!(said.contains(&wanted), "{said}");
            anyhow::Ok(())
        })
        .await;
    }

    /// A new Service, as a dry run.
    async fn ask(&self, namespace: &str, spec: Value) -> Result<Answer> {
        let path = format!("/api/v1/namespaces/{namespace}/services?dryRun=All");
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "generateName": "new-" }, "spec": spec,
        });
        let request = Request::post(path)
            .header("Content-Type", "application/json")
            .body(Body::from(serde_json::to_vec(&service)?))?;
        let answer = self.cluster.client().send(request).await?;
        let warning = answer.headers().get("Warning");
        let warning = warning.map_or(Ok(""), |it| it.to_str())?.to_owned();
        let status = answer.status().as_u16();
        let text = answer.into_body().collect_bytes().await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(Answer {
            status,
            text,
            warning,
        })
    }

    /// A LoadBalancer Service without a class may have these ports.
    async fn allowed(&self, namespace: &str, ports: &[(u16, &str)]) -> Result<()> {
        let answer = self.ask(namespace, load_balancer(ports)).await?;
        ensure!(answer.status == 201, "{namespace} {ports:?}: {answer:?}");
        Ok(())
    }

    /// It may not, and this is said.
    async fn refused(&self, namespace: &str, ports: &[(u16, &str)]) -> Result<String> {
        self.refuses(namespace, load_balancer(ports)).await
    }

    async fn refuses(&self, namespace: &str, spec: Value) -> Result<String> {
        let answer = self.ask(namespace, spec).await?;
        ensure!(
            answer.status == 403 && answer.text.contains(&self.name),
            "{namespace}: {answer:?}"
        );
        Ok(answer.text)
    }
}

fn delete(cluster: &Cluster, objects: &[String]) -> Result<()> {
    let mut command = vec!["delete", "--ignore-not-found", "--wait=false"];
    command.extend(objects.iter().map(String::as_str));
    cluster.kubectl(&command).map(drop)
}

/// Goes at the end of the test, before the scope.
struct Remains {
    cluster: Cluster,
    objects: Vec<String>,
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let mut objects = self.objects();
        objects.extend([&self.ingress, &self.team].map(|name| format!("namespace/{name}")));
        test_run::at_end(Remains {
            cluster: self.cluster.clone(),
            objects,
        });
    }
}

impl Leftover for Remains {
    fn remove(self: Box<Self>) {
        if let Err(error) = delete(&self.cluster, &self.objects) {
            eprintln!("tenancy: {error:#}");
        }
    }

    fn keep(self: Box<Self>) {}
}

fn load_balancer(ports: &[(u16, &str)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(port, protocol)| {
            let name = format!("{}-{port}", protocol.to_lowercase());
            json!({ "name": name, "port": port, "protocol": protocol })
        })
        .collect();
    json!({ "type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false })
}

async fn installed(prefix: &str) -> Result<(Tenancy, Scope)> {
    let cluster = Cluster::attach().await?;
    let scope = Scope::new(&cluster, prefix).await?;
    let tenancy = Tenancy::install(&cluster, &scope).await?;
    Ok((tenancy, scope))
}
