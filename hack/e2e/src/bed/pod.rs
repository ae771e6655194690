//! Pods: an echo server in a namespace of its own (or its node's), and the Pod
//! object with the status a kubelet would report.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bed::slots;
use crate::cluster::cilium;
use crate::cluster::config::Config;
use crate::cluster::handle::Cluster;
use crate::cluster::layout::{pod_v4, pod_v6};
use crate::cluster::network;
use crate::lab::netns::Netns;
use crate::lab::state::{State, read_json, write_json};
use crate::lab::unit::{Spec, Unit};
use crate::lab::wait::try_wait_for;

/// How long an echo server may take to open its ports.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a Pod may be terminating; longer than any test.
const TERMINATING_SECONDS: u32 = 600;

/// A Pod to be; see [`crate::Scope::pod`].
pub struct PodBuilder {
    cluster: Cluster,
    namespace: String,
    name: String,
    node: String,
    labels: Vec<(String, String)>,
    tcp: Vec<u16>,
    udp: Vec<u16>,
    sctp: Vec<u16>,
    port_names: Vec<(u16, String)>,
    host_port: bool,
    host_network: bool,
}

/// What is written down about a Pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    namespace: String,
    name: String,
    node: String,
    /// Its number on the node; none with hostNetwork.
    slot: Option<u8>,
    addresses: Vec<IpAddr>,
}

/// A Pod that was started.
#[derive(Clone)]
pub struct Pod {
    state: State,
    record: Record,
}

impl PodBuilder {
    /// A Pod of that name on node `n1` with label `app=<name>` and no ports.
    pub fn new(cluster: &Cluster, namespace: &str, name: &str) -> Self {
        Self {
            cluster: cluster.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: "n1".to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            tcp: Vec::new(),
            udp: Vec::new(),
            sctp: Vec::new(),
            port_names: Vec::new(),
            host_port: false,
            host_network: false,
        }
    }

    /// The node it runs on.
    pub fn on(mut self, node: &str) -> Self {
        self.node = node.to_owned();
        self
    }

    /// Sets a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.retain(|(known, _)| known != key);
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Serves on a TCP port.
    pub fn tcp(mut self, port: u16) -> Self {
        self.tcp.push(port);
        self
    }

    /// Serves on a UDP port.
    pub fn udp(mut self, port: u16) -> Self {
        self.udp.push(port);
        self
    }

    /// Serves on an SCTP port; few kernels can.
    pub fn sctp(mut self, port: u16) -> Self {
        self.sctp.push(port);
        self
    }

    /// Names one of its ports, for Services whose target is a name.
    pub fn named(mut self, port: u16, name: &str) -> Self {
        self.port_names.push((port, name.to_owned()));
        self
    }

    /// Claims its ports as hostPorts of the node, in the Pod object only: no CNI
    /// plugin that would forward them runs here.
    pub fn host_port(mut self) -> Self {
        self.host_port = true;
        self
    }

    /// Runs in the node's own namespace, at the node's addresses.
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// Starts it and reports it ready. EndpointSlices follow in their own time.
    pub async fn start(self) -> Result<Pod> {
        // The object first: a CNI plugin reads its labels.
        let pods: Api<PodObject> = Api::namespaced(self.cluster.client(), &self.namespace);
        let object: PodObject = serde_json::from_value(self.object())?;
        pods.create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("create Pod {}/{}", self.namespace, self.name))?;
        let pod = self.set_up()?;
        let outcome = self.announce(&pod).await;
        if outcome.is_err() {
            pod.stop().ok();
        }
        outcome.map(|()| pod)
    }

    /// Namespace, cable and process.
    fn set_up(&self) -> Result<Pod> {
        let state = self.cluster.state();
        let node = self.cluster.node(&self.node)?;
        let family = self.cluster.config().ip_family;
        let path = record_path(state, &self.namespace, &self.name);
        ensure!(
            !path.exists(),
            "Pod {}/{} exists already",
            self.namespace,
            self.name
        );
        let mut record = Record {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            node: self.node.clone(),
            slot: None,
            addresses: node.addresses().to_vec(),
        };
        if !self.host_network {
            let slot = slots::take(state, &self.node)?;
            record.slot = Some(slot);
            record.addresses = family.pick(
                pod_v4(node.index, slot).into(),
                pod_v6(node.index, slot).into(),
            );
        }
        write_json(&path, &record)?;
        let mut pod = Pod {
            state: state.clone(),
            record,
        };
        let mut run = || -> Result<()> {
            match (pod.record.slot, &self.cluster.config().cilium) {
                (None, _) => {}
                (Some(slot), None) => {
                    network::pod(node.netns(), &pod.netns(), node.index, slot, family)?;
                }
                (Some(_), Some(cilium)) => {
                    let object = (&*self.namespace, &*self.name);
                    pod.record.addresses =
                        cilium::plug(cilium, node.netns(), &pod.netns(), object, family)?;
                    write_json(&path, &pod.record)?;
                }
            }
            Unit::spawn(state, self.echo(&pod))?;
            Ok(())
        };
        if let Err(error) = run() {
            pod.stop().ok();
            return Err(error);
        }
        Ok(pod)
    }

    fn echo(&self, pod: &Pod) -> Spec {
        let list = |ports: &[u16]| {
            ports
                .iter()
                .map(u16::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        let mut argv = vec![
            self.cluster
                .config()
                .tools
                .join("highwire-echo")
                .display()
                .to_string(),
            format!("--name={}", self.name),
        ];
        if !self.tcp.is_empty() {
            argv.push(format!("--tcp={}", list(&self.tcp)));
        }
        if !self.udp.is_empty() {
            argv.push(format!("--udp={}", list(&self.udp)));
        }
        if !self.sctp.is_empty() {
            argv.push(format!("--sctp={}", list(&self.sctp)));
        }
        Spec::new(pod.unit().name(), &pod.netns(), argv)
    }

    /// Waits for the process, then reports the Pod ready.
    async fn announce(&self, pod: &Pod) -> Result<()> {
        let unit = pod.unit();
        let serving = try_wait_for("the echo server", START_LIMIT, || async {
            unit.log().contains("ready") || !unit.is_running()
        });
        serving.await.with_context(|| unit.tail(20))?;
        unit.check_running()?;

        pod.set_ready(&self.cluster, true).await
    }

    fn object(&self) -> Value {
        let ports = |ports: &[u16], protocol: &str| -> Vec<Value> {
            ports
                .iter()
                .map(|port| {
                    let mut value = json!({ "containerPort": port, "protocol": protocol });
                    if let Some((_, name)) = self.port_names.iter().find(|(it, _)| it == port) {
                        value["name"] = json!(name);
                    }
                    if self.host_port || self.host_network {
                        value["hostPort"] = json!(port);
                    }
                    value
                })
                .collect()
        };
        let mut all = ports(&self.tcp, "TCP");
        all.extend(ports(&self.udp, "UDP"));
        all.extend(ports(&self.sctp, "SCTP"));
        let labels: serde_json::Map<String, Value> = self
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        json!({
            "metadata": { "name": self.name, "namespace": self.namespace, "labels": labels },
            "spec": {
                "nodeName": self.node,
                "hostNetwork": self.host_network,
                "automountServiceAccountToken": false,
                // No kubelet confirms that containers have ended.
                "terminationGracePeriodSeconds": 0,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{ "name": "echo", "image": "highwire-echo", "ports": all }],
            },
        })
    }
}

impl Pod {
    /// A Pod started before, perhaps by another process.
    pub fn find(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self> {
        let state = cluster.state();
        let path = record_path(state, namespace, name);
        ensure!(path.exists(), "no Pod {namespace}/{name}");
        Ok(Self {
            state: state.clone(),
            record: read_json(&path)?,
        })
    }

    /// All Pods of a namespace; the harness's own records, not the API server's.
    pub fn list(state: &State, namespace: &str) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(state.path("pods")) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| read_json::<Record>(&entry.ok()?.path()).ok())
            .filter(|record| record.namespace == namespace)
            .map(|record| Self {
                state: state.clone(),
                record,
            })
            .collect()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its node's name.
    pub fn node(&self) -> &str {
        &self.record.node
    }

    /// Its addresses, primary first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.record.addresses
    }

    /// Its primary address with that port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.record.addresses[0], port)
    }

    /// Its namespace: its own, or its node's with hostNetwork.
    pub fn netns(&self) -> Netns {
        match self.record.slot {
            Some(slot) => slots::netns(&self.state, &self.record.node, slot),
            None => Netns::of(&self.state, &self.record.node),
        }
    }

    /// The echo server's process.
    pub fn unit(&self) -> Unit {
        let Record {
            namespace, name, ..
        } = &self.record;
        Unit::new(&self.state, format!("pod-{namespace}-{name}"))
    }

    /// Reports it ready or not, as a probe would.
    pub async fn set_ready(&self, cluster: &Cluster, ready: bool) -> Result<()> {
        let condition = |kind: &str, yes: bool| json!({ "type": kind, "status": if yes { "True" } else { "False" } });
        let ips: Vec<Value> = self
            .record
            .addresses
            .iter()
            .map(|address| json!({ "ip": address }))
            .collect();
        let host_ips: Vec<Value> = cluster
            .node(&self.record.node)?
            .addresses()
            .iter()
            .map(|address| json!({ "ip": address }))
            .collect();
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": self.record.addresses[0],
            "podIPs": ips,
            "hostIP": host_ips[0]["ip"],
            "hostIPs": host_ips,
            "containerStatuses": [{
                "name": "echo", "image": "highwire-echo", "imageID": "", "restartCount": 0,
                "ready": ready, "started": true, "state": { "running": {} },
            }],
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", true),
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ],
        }});
        let pods: Api<PodObject> = Api::namespaced(cluster.client(), &self.record.namespace);
        pods.patch_status(
            &self.record.name,
            &PatchParams::default(),
            &Patch::Merge(status),
        )
        .await
        .with_context(|| format!("report Pod {} ready={ready}", self.record.name))?;
        Ok(())
    }

    /// Deletes the Pod object and leaves the process running.
    pub async fn delete_object(&self, cluster: &Cluster) -> Result<()> {
        let pods: Api<PodObject> = Api::namespaced(cluster.client(), &self.record.namespace);
        match pods
            .delete(&self.record.name, &DeleteParams::default().grace_period(0))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome.map(drop).context("delete a Pod"),
        }
    }

    /// Asks the Pod to end; its object stays, terminating, and so does the process, until
    /// [`Self::delete`]: nobody confirms here that the containers have ended.
    pub async fn terminate(&self, cluster: &Cluster) -> Result<()> {
        let pods: Api<PodObject> = Api::namespaced(cluster.client(), &self.record.namespace);
        let grace = DeleteParams::default().grace_period(TERMINATING_SECONDS);
        pods.delete(&self.record.name, &grace)
            .await
            .map(drop)
            .with_context(|| format!("terminate Pod {}", self.record.name))
    }

    /// Ends the process and takes its namespace away; the object stays.
    pub fn stop(&self) -> Result<()> {
        self.unit().remove()?;
        if let Some(slot) = self.record.slot {
            let (netns, node) = (self.netns(), Netns::of(&self.state, &self.record.node));
            // A cable that was never plugged cannot be pulled.
            match &Config::read(&self.state)?.cilium {
                None => network::unplug_pod(&node, slot).ok(),
                Some(cilium) => {
                    let object = (&*self.record.namespace, &*self.record.name);
                    cilium::unplug(cilium, &node, &netns, object).ok()
                }
            };
            netns.delete()?;
        }
        let path = record_path(&self.state, &self.record.namespace, &self.record.name);
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Deletes the object, then stops the process.
    pub async fn delete(&self, cluster: &Cluster) -> Result<()> {
        self.delete_object(cluster).await?;
        self.stop()
    }
}

fn record_path(state: &State, namespace: &str, name: &str) -> PathBuf {
    state.path(format!("pods/{namespace}.{name}.json"))
}
