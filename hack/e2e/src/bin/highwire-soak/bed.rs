//! The cluster that histories happen to: does each operation, and puts everything back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use highwire_e2e::lab::unit::Spec;
use highwire_e2e::{Cluster, Node, Pod, Program, Programs as _, ProxyMode, Scope, Unit, lifecycle};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Api, Patch, PatchParams};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::history::{Bind, Operation, PodKind, Pool, Protocol};
use crate::service::{Services, set};

/// How long a program may take until it is ready.
const READY: Duration = Duration::from_secs(60);
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const POOL: &str = "pool";
/// The nodes that serve when a history begins.
const SERVING: [u8; 2] = [1, 2];

/// A cluster, and what a history has put on it.
pub(crate) struct Bed {
    cluster: Cluster,
    scope: Scope,
    pods: BTreeMap<u8, Pod>,
    listeners: BTreeSet<String>,
}

impl Bed {
    /// On a cluster where Highwire runs.
    pub(crate) async fn new(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            cluster: cluster.clone(),
            scope: Scope::new(cluster, "soak").await?,
            pods: BTreeMap::new(),
            listeners: BTreeSet::new(),
        })
    }

    fn node(&self, number: u8) -> Result<Node> {
        self.cluster.node(&format!("n{number}"))
    }

    fn agent(&self, node: u8) -> Result<Program> {
        self.cluster.agent(&format!("n{node}"))
    }

    fn controller(&self, number: u8) -> Result<Program> {
        self.cluster.controller(&format!("c{number}"))
    }

    /// Does it. `Quiet` is the caller's.
    pub(crate) async fn apply(&mut self, operation: &Operation) -> Result<()> {
        let services = Services {
            cluster: &self.cluster,
            namespace: self.scope.namespace(),
        };
        match operation {
            Operation::Quiet => Ok(()),
            Operation::PutService { slot, shape } => services.put(*slot, shape).await,
            Operation::DeleteService { slot } => services.delete(*slot).await,
            Operation::ForeignStatus { slot, node } => {
                let ip = match node {
                    Some(node) => self.node(*node)?.v4(0).ip().to_string(),
                    None => "203.0.113.200".to_owned(),
                };
                services.write_status(*slot, &ip).await
            }
            Operation::PutPod { slot, node, kind } => self.put_pod(*slot, *node, *kind).await,
            Operation::ReadyPod { slot, ready } => match self.pods.get(slot) {
                Some(pod) => pod.set_ready(&self.cluster, *ready).await,
                None => Ok(()),
            },
            Operation::DeletePod { slot } => self.delete_pod(*slot).await,
            Operation::EnableNode { node, enabled } => self.enable(*node, *enabled).await,
            Operation::ExcludeNode { node, excluded } => {
                self.label(*node, EXCLUDE, excluded.then_some("")).await
            }
            Operation::PoolNode { node, pool } => {
                self.label(*node, POOL, pool.map(Pool::as_str)).await
            }
            Operation::Listen {
                node,
                at,
                protocol,
                port,
            } => self.listen(*node, *at, *protocol, *port),
            Operation::StopListening {
                node,
                protocol,
                port,
            } => self.stop_listening(&listener(*node, *protocol, *port)),
            Operation::SecondAddress { node, there } => self.second_address(*node, *there),
            Operation::ExternalAddress { node, named } => self.name_address(*node, *named).await,
            _ => self.break_something(operation).await,
        }
    }

    async fn break_something(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::KillAgent { node } => crash(&self.agent(*node)?),
            Operation::FreezeAgent { node } => self.agent(*node)?.unit().signal(Signal::SIGSTOP),
            Operation::ThawAgent { node } => self.agent(*node)?.unit().signal(Signal::SIGCONT),
            Operation::KillController { number } => crash(&self.controller(*number)?),
            Operation::FreezeController { number } => {
                // One goes on, or nobody writes what the checker waits for.
                let other = self.controller(3 - *number)?;
                other.unit().signal(Signal::SIGCONT)?;
                self.controller(*number)?.unit().signal(Signal::SIGSTOP)
            }
            Operation::ThawController { number } => {
                self.controller(*number)?.unit().signal(Signal::SIGCONT)
            }
            Operation::KillProxy { node } => self.kill_proxy(*node),
            Operation::ProxyMode { node, nftables } => {
                let mode = match nftables {
                    true => ProxyMode::Nftables,
                    false => ProxyMode::Iptables,
                };
                lifecycle::change_proxy_mode(&self.cluster, &self.node(*node)?, mode, None)
            }
            Operation::FlushRuleset { node } => {
                self.node(*node)?
                    .netns()
                    .check(&["nft", "flush", "ruleset"])?;
                self.kill_proxy(*node)
            }
            Operation::DeleteTable { node } => self.nft(*node, "delete table inet highwire"),
            Operation::DeleteElement {
                node,
                protocol,
                port,
            } => self.element(*node, "delete", *protocol, *port),
            Operation::AddElement {
                node,
                protocol,
                port,
            } => self.element(*node, "add", *protocol, *port),
            Operation::CutOff { nodes, seconds } => {
                for node in nodes {
                    self.cable(*node, "down")?;
                }
                tokio::time::sleep(Duration::from_secs(u64::from(*seconds))).await;
                for node in nodes {
                    self.cable(*node, "up")?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn label(&self, node: u8, label: &str, value: Option<&str>) -> Result<()> {
        self.cluster
            .label_node(&format!("n{node}"), label, value)
            .await
    }

    async fn put_pod(&mut self, slot: u8, node: u8, kind: PodKind) -> Result<()> {
        self.delete_pod(slot).await?;
        let pod = self.scope.pod(&format!("p{slot}")).on(&format!("n{node}"));
        let pod = pod.label("set", set(slot));
        let pod = match kind {
            PodKind::Web => pod.label("app", "web").tcp(8080).udp(5353),
            PodKind::Edge(port) => pod.label("app", "edge").tcp(port).host_network(),
            PodKind::HostPort(port) => pod.label("app", "edge").tcp(port).host_port(),
        };
        match pod.start().await {
            Ok(pod) => drop(self.pods.insert(slot, pod)),
            // The port may be taken on the node.
            Err(error) if matches!(kind, PodKind::Edge(_)) => {
                let text = format!("{error:#}");
                println!("    (no Pod: {})", text.lines().next().unwrap_or_default());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn delete_pod(&mut self, slot: u8) -> Result<()> {
        match self.pods.remove(&slot) {
            Some(pod) => pod.delete(&self.cluster).await,
            None => Ok(()),
        }
    }

    /// As the DaemonSet does: the agent starts with the label, and ends after it.
    async fn enable(&self, node: u8, enabled: bool) -> Result<()> {
        let (agent, name) = (self.agent(node)?, format!("n{node}"));
        if enabled {
            self.cluster.opt_in(&name).await?;
            if !agent.is_running() {
                agent.start(&[]).await?;
            }
            return Ok(());
        }
        self.cluster.opt_out(&name).await?;
        // One that is frozen would be killed, and its table would stay.
        agent.unit().signal(Signal::SIGCONT)?;
        agent.stop()
    }

    fn listen(&mut self, node: u8, at: Bind, protocol: Protocol, port: u16) -> Result<()> {
        let name = listener(node, protocol, port);
        self.stop_listening(&name)?;
        let echo = self.cluster.config().tools.join("highwire-echo");
        let protocol = protocol.as_str().to_lowercase();
        let mut argv = vec![
            echo.display().to_string(),
            format!("--name={name}"),
            format!("--{protocol}={port}"),
        ];
        argv.extend(match at {
            Bind::All => None,
            Bind::V4 => Some("--address=0.0.0.0".to_owned()),
            Bind::Loopback => Some("--address=127.0.0.1".to_owned()),
        });
        let spec = Spec::new(name.clone(), self.node(node)?.netns(), argv);
        Unit::spawn(self.cluster.state(), spec)?;
        self.listeners.insert(name);
        Ok(())
    }

    fn stop_listening(&mut self, name: &str) -> Result<()> {
        match self.listeners.remove(name) {
            true => self.cluster.unit(name).remove(),
            false => Ok(()),
        }
    }

    fn second_address(&self, node: u8, there: bool) -> Result<()> {
        let verb = if there { "replace" } else { "del" };
        let [v4, v6] = second(node);
        let lines = format!("addr {verb} {v4}/24 dev eth0\naddr {verb} {v6}/64 dev eth0 nodad\n");
        // It may not be there.
        self.node(node)?
            .netns()
            .ip_batch(&lines)
            .or_else(|error| match there {
                true => Err(error),
                false => Ok(()),
            })
    }

    async fn name_address(&self, node: u8, named: bool) -> Result<()> {
        let of = self.node(node)?;
        let mut addresses: Vec<_> = of
            .addresses()
            .iter()
            .map(|address| json!({ "type": "InternalIP", "address": address }))
            .collect();
        if named {
            let [v4, _] = second(node);
            addresses.push(json!({ "type": "ExternalIP", "address": v4 }));
        }
        let patch = Patch::Merge(json!({ "status": { "addresses": addresses } }));
        let nodes: Api<NodeObject> = Api::all(self.cluster.client());
        let patched = nodes
            .patch_status(&of.name, &PatchParams::default(), &patch)
            .await;
        patched.map(drop).context("name a Node's addresses")
    }

    fn kill_proxy(&self, node: u8) -> Result<()> {
        let proxy = self.cluster.unit(&format!("kube-proxy-n{node}"));
        proxy.kill()?;
        proxy.start_again()
    }

    /// What is not there to be changed is not.
    fn nft(&self, node: u8, command: &str) -> Result<()> {
        let changed = self.node(node)?.netns().check(&["nft", command]);
        if changed.is_err() {
            println!("    (not there)");
        }
        Ok(())
    }

    fn element(&self, node: u8, verb: &str, protocol: Protocol, port: u16) -> Result<()> {
        let protocol = protocol.as_str().to_lowercase();
        let element = format!("{{ {protocol} . {port} }}");
        self.nft(
            node,
            &format!("{verb} element inet highwire ports4 {element}"),
        )?;
        if verb == "delete" {
            self.nft(
                node,
                &format!("delete element inet highwire clusterip6 {element}"),
            )?;
        }
        Ok(())
    }

    fn cable(&self, node: u8, state: &str) -> Result<()> {
        self.cluster
            .netns("fabric")?
            .ip_batch(&format!("link set n{node} {state}"))
    }

    /// Ends every fault.
    pub(crate) async fn heal(&self) -> Result<()> {
        for node in 1..=self.cluster.config().nodes {
            self.agent(node)?.unit().signal(Signal::SIGCONT)?;
        }
        for number in [1, 2] {
            self.controller(number)?.unit().signal(Signal::SIGCONT)?;
        }
        Ok(())
    }

    /// Puts everything as it was before a history.
    pub(crate) async fn clean(&mut self) -> Result<()> {
        self.heal().await?;
        let services: Api<k8s_openapi::api::core::v1::Service> =
            Api::namespaced(self.cluster.client(), self.scope.namespace());
        services
            .delete_collection(
                &kube::api::DeleteParams::default(),
                &kube::api::ListParams::default(),
            )
            .await?;
        for slot in self.pods.keys().copied().collect::<Vec<_>>() {
            self.delete_pod(slot).await?;
        }
        // Those of an earlier run as well.
        let units = Unit::list(self.cluster.state()).into_iter();
        for listener in units.filter(|unit| unit.name().starts_with("host-")) {
            listener.remove()?;
        }
        self.listeners.clear();
        for node in 1..=self.cluster.config().nodes {
            self.label(node, EXCLUDE, None).await?;
            self.label(node, POOL, None).await?;
            self.name_address(node, false).await?;
            self.second_address(node, false)?;
            let of = self.node(node)?;
            if let Some(mode) = self.cluster.config().proxy_modes.on(node) {
                lifecycle::change_proxy_mode(&self.cluster, &of, mode, None)?;
            }
            self.enable(node, SERVING.contains(&node)).await?;
        }
        for node in SERVING {
            self.agent(node)?.wait_ready(READY).await?;
        }
        Ok(())
    }
}

/// The process dies, and a new one takes its place.
fn crash(program: &Program) -> Result<()> {
    if !program.is_running() {
        return Ok(());
    }
    program.kill()?;
    program.unit().start_again()
}

fn listener(node: u8, protocol: Protocol, port: u16) -> String {
    format!("host-n{node}-{}-{port}", protocol.as_str().to_lowercase())
}

/// The second addresses of a node.
fn second(node: u8) -> [String; 2] {
    [
        format!("192.0.2.{}", 100 + node),
        format!("2001:db8:1::{}", 100 + u16::from(node)),
    ]
}
