//! A real Prometheus in a cluster's network that scrapes our programs and evaluates the
//! alerts of `deploy/monitoring/`. It runs where clients outside the cluster are.

pub mod promql;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cluster::handle::{Cluster, checkout};
use crate::cluster::layout::{AGENT_PORT, CONTROLLER_PORT};
use crate::highwire::{CONTROLLERS, SERVING};
use crate::lab::http::{http_send, http_text};
use crate::lab::netns::Netns;
use crate::lab::test_run::{self, Leftover};
use crate::lab::unit::{Spec, Unit};
use crate::lab::wait::try_wait_for;

/// Names the folder that `hack/prometheus` prints.
const PROMETHEUS: &str = "HIGHWIRE_PROMETHEUS";
const NAME: &str = "prometheus";
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// How long it may take to start, and to end.
const LIMIT: Duration = Duration::from_secs(30);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A Prometheus that runs until the end of the test. There can be one in a cluster.
pub struct Prometheus {
    netns: Netns,
}

/// An alert as Prometheus has it.
#[derive(Clone, Debug, Deserialize)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// Its expression.
    pub query: String,
    /// `ok` once its expression has been evaluated without an error.
    pub health: String,
    /// That error.
    #[serde(rename = "lastError", default)]
    pub last_error: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    status: String,
    data: Option<T>,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct Found {
    result: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

impl Prometheus {
    /// Starts it. It scrapes the serving nodes' agents and the controllers once a second.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let started = Self {
            netns: cluster.outside(),
        };
        let folder = started.folder();
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(folder.join("highwire.rules.yaml"), plain_rules()?)?;
        let often = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n";
        let configuration = documented_configuration(&programs(cluster)?)?;
        fs::write(
            folder.join("prometheus.yaml"),
            often.to_owned() + &configuration,
        )?;
        let argv = vec![
            program("prometheus")?.display().to_string(),
            format!("--config.file={}", folder.join("prometheus.yaml").display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address={LISTEN}"),
        ];
        let spec = Spec::new(NAME, &started.netns, argv);
        let unit = Unit::spawn(started.netns.state(), spec)?;
        let ready = try_wait_for("Prometheus to start", LIMIT, || async {
            unit.check_running()?;
            let get = || http_text(LISTEN, "/-/ready", ANSWER);
            anyhow::Ok(started.netns.run(get)?)
        });
        ready.await.with_context(|| unit.tail(20))?;
        Ok(started)
    }

    /// What a query finds now.
    pub fn query(&self, query: &str) -> Result<Vec<serde_json::Value>> {
        let found: Found = self.ask("query", "query", query)?;
        Ok(found.result)
    }

    /// The series that a selector such as `up{job="x"}` finds.
    pub fn series(&self, selector: &str) -> Result<Vec<serde_json::Value>> {
        self.ask("series", "match[]", selector)
    }

    /// The alerts it evaluates.
    pub fn alerts(&self) -> Result<Vec<Alert>> {
        let body = || http_text(LISTEN, "/api/v1/rules", ANSWER);
        let rules: Rules = data(&self.netns.run(body)?)?;
        Ok(rules.groups.into_iter().flat_map(|it| it.rules).collect())
    }

    fn ask<T: DeserializeOwned>(&self, what: &str, name: &str, value: &str) -> Result<T> {
        let path = format!("/api/v1/{what}");
        let form = format!("{}={}", encoded(name), encoded(value));
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        let send = || http_send(LISTEN, ("POST", &path), &headers, &form, ANSWER);
        let answer = self.netns.run(send)?;
        data(&answer.body).with_context(|| format!("{what} {value}"))
    }

    fn folder(&self) -> PathBuf {
        self.netns.state().path(NAME)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        test_run::at_end(Removal {
            unit: Unit::new(self.netns.state(), NAME),
            folder: self.folder(),
        });
    }
}

/// One that was dropped.
struct Removal {
    unit: Unit,
    folder: PathBuf,
}

impl Leftover for Removal {
    fn remove(self: Box<Self>) {
        if let Err(error) = self.unit.remove() {
            eprintln!("{NAME}: {error:#}");
        }
        fs::remove_dir_all(&self.folder).ok();
    }

    fn keep(self: Box<Self>) {}
}

/// A program of the package: `prometheus` or `promtool`.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os(PROMETHEUS).map(PathBuf::from);
    let folder = folder.with_context(|| {
        format!(
            "{PROMETHEUS} is not set: hack/test sets it; by hand, {PROMETHEUS}=$(hack/prometheus)"
        )
    })?;
    Ok(folder.join("usr/bin").join(name))
}

/// What `hack/prometheus-rules` prints.
pub fn plain_rules() -> Result<String> {
    let printed = Command::new(checkout().join("hack/prometheus-rules")).output();
    let printed = printed.context("hack/prometheus-rules")?;
    ensure!(printed.status.success(), "hack/prometheus-rules failed");
    Ok(String::from_utf8(printed.stdout)?)
}

/// One of our programs, as Prometheus finds its Pod.
pub struct Target {
    /// Where it answers.
    pub address: SocketAddr,
    /// `agent` or `controller`.
    pub component: &'static str,
    /// The name of its Pod.
    pub pod: String,
    /// The name of its node.
    pub node: String,
}

/// The configuration that `docs/monitoring.md` shows, with these Pods in place of those of the
/// API server: the distribution's Prometheus cannot ask one.
pub fn documented_configuration(targets: &[Target]) -> Result<String> {
    let text = fs::read_to_string(checkout().join("docs/monitoring.md"))?;
    let block = text.split("```yaml\n").nth(1).context("no configuration")?;
    let block = block.split("```").next().unwrap_or_default();
    let (before, asks) = block
        .split_once("    kubernetes_sd_configs:\n")
        .context("it finds no Pods")?;
    let (_, after) = asks
        .split_once("    relabel_configs:\n")
        .context("it relabels nothing")?;
    let mut found = String::new();
    for target in targets {
        let Target {
            address,
            component,
            pod,
            node,
        } = target;
        found += &format!(
            "      - targets: ['{address}']\n        labels:\n          \
             __meta_kubernetes_pod_label_app_kubernetes_io_name: highwire\n          \
             __meta_kubernetes_pod_label_app_kubernetes_io_component: {component}\n          \
             __meta_kubernetes_pod_container_port_name: admin\n          \
             __meta_kubernetes_pod_name: {pod}\n          \
             __meta_kubernetes_pod_node_name: {node}\n"
        );
    }
    Ok(format!(
        "{before}    static_configs:\n{found}    relabel_configs:\n{after}"
    ))
}

/// The programs that run on a cluster by default.
fn programs(cluster: &Cluster) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for node in SERVING {
        targets.push(Target {
            address: SocketAddr::new(cluster.node(node)?.addresses()[0], AGENT_PORT),
            component: "agent",
            pod: format!("highwire-agent-{node}"),
            node: node.to_owned(),
        });
    }
    let address = cluster.config().ip_family.control_plane();
    for (name, port) in CONTROLLERS.into_iter().zip(CONTROLLER_PORT..) {
        targets.push(Target {
            address: SocketAddr::new(address, port),
            component: "controller",
            pod: format!("highwire-controller-{name}"),
            node: "n1".to_owned(),
        });
    }
    Ok(targets)
}

fn data<T: DeserializeOwned>(body: &str) -> Result<T> {
    let answer: Answer<T> = serde_json::from_str(body).with_context(|| body.to_owned())?;
    ensure!(answer.status == "success", "{}", answer.error);
    answer.data.context("no data")
}

/// As a form holds it.
fn encoded(text: &str) -> String {
    let bytes = text.bytes();
    bytes
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_holds_any_query() {
        assert_eq!(encoded("up{a=\"b\"} + 1"), "up%7Ba%3D%22b%22%7D%20%2B%201");
    }
}
