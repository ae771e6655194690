//! `deploy/tenancy/`: which namespaces may ask for which ports, on a real API server.
//!
//! Each test has a policy of its own, with other names, that is bound to the test's namespaces
//! only. What is not about an existing Service is a dry run, which admission treats as a
//! write: nothing here takes port 80 from other tests.

mod existing;
mod parameters;
mod rules;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use highwire_e2e::expect::LONG;
use highwire_e2e::lab::test_run::{self, Leftover};
use highwire_e2e::{Cluster, Scope, manifests, wait_for};
use http::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use kube::client::Body;
use serde_json::{Value, json};

const FOLDER: &str = "deploy/tenancy";
/// The name and the namespace that `deploy/tenancy/` has.
const NAME: &str = "highwire-ports";
const SYSTEM: &str = "highwire-system";

/// A policy as shipped, for the namespaces of one test.
struct Tenancy {
    cluster: Cluster,
    /// Of the policy, its binding and its ConfigMap.
    name: String,
    /// Where the ConfigMap is; a namespace without a line.
    other: String,
    /// It has the shipped line of `ingress`.
    ingress: String,
    /// It has the shipped line of `team-a`.
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
        for namespace in [&tenancy.ingress, &tenancy.team] {
            cluster.kubectl(&["create", "namespace", namespace])?;
        }
        let objects = manifests::objects(cluster, Path::new(FOLDER))?;
        let objects: Vec<Value> = objects
            .iter()
            .map(|object| tenancy.own(object))
            .collect::<Result<_>>()?;
        ensure!(objects.len() == 3, "{objects:?}");
        tenancy.apply(&objects)?;
        wait_for("the policy to be in force", LONG, || async {
            tenancy.refused(&tenancy.other, &[(1, "TCP")]).await
        })
        .await;
        Ok(tenancy)
    }

    /// A shipped object under the test's names.
    fn own(&self, object: &Value) -> Result<Value> {
        let text = object.to_string().replace(NAME, &self.name);
        let mut object: Value = serde_json::from_str(&text.replace(SYSTEM, &self.other))?;
        let namespaces = [&self.ingress, &self.team, &self.other];
        match object["kind"].as_str() {
            Some("ConfigMap") => {
                let lines = object["data"].as_object_mut().context("no lines")?;
                for (shipped, own) in [("ingress", &self.ingress), ("team-a", &self.team)] {
                    let line = lines.remove(shipped).context("no such line")?;
                    lines.insert(own.clone(), line);
                }
            }
            Some("ValidatingAdmissionPolicyBinding") => {
                let name = "kubernetes.io/metadata.name";
                let own = json!({ "key": name, "operator": "In", "values": namespaces });
                object["spec"]["matchResources"] =
                    json!({ "namespaceSelector": { "matchExpressions": [own] } });
            }
            _ => {}
        }
        Ok(object)
    }

    fn apply(&self, objects: &[Value]) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = manifests::write(folder.path(), objects)?;
        let file = file.to_str().context("not UTF-8")?;
        self.cluster.kubectl(&["apply", "-f", file]).map(drop)
    }

    /// Changes lines of the ConfigMap; null removes one. They take a moment to count.
    async fn change_lines(&self, lines: &Value) -> Result<()> {
        self.change(&json!({ "data": lines })).await
    }

    /// Changes the ConfigMap.
    async fn change(&self, patch: &Value) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client(), &self.other);
        maps.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(drop)
            .context("patch the ConfigMap")
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

/// Goes at the end of the test, before the scope.
struct Remains {
    cluster: Cluster,
    arguments: Vec<String>,
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let policy = "validatingadmissionpolicy";
        test_run::at_end(Remains {
            cluster: self.cluster.clone(),
            arguments: vec![
                format!("{policy}binding/{}", self.name),
                format!("{policy}/{}", self.name),
                format!("namespace/{}", self.ingress),
                format!("namespace/{}", self.team),
            ],
        });
    }
}

impl Leftover for Remains {
    fn remove(self: Box<Self>) {
        let mut command = vec!["delete", "--ignore-not-found", "--wait=false"];
        command.extend(self.arguments.iter().map(String::as_str));
        if let Err(error) = self.cluster.kubectl(&command) {
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
