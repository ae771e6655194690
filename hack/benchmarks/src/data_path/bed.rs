//! A node with Pods behind every path, and a client outside the cluster.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use highwire_e2e::lab::http::http_text;
use highwire_e2e::{Cluster, Netns, Node, Pod, Program, Programs as _, Scope, Svc, Unit, wait_for};
use serde_json::{Value, json};

use crate::data_path::klipper::{self, Forward};
use crate::data_path::other_node::OtherNode;
use crate::data_path::path::Path;
use crate::data_path::servers::{self, BULK, WEB};

/// The node that nearly all paths lead over, and that their Pods are on.
pub(crate) const NODE: &str = "n1";
/// Pods that answer requests, on each node.
pub(crate) const PODS: usize = 4;
/// Ports of the Services, below those that other parts use.
const WEB_PORT: u16 = 18_080;
const WEB_LOCAL_PORT: u16 = 18_081;
const BULK_PORT: u16 = 18_090;
const BULK_LOCAL_PORT: u16 = 18_091;
/// iperf3 needs TCP and UDP on the same port.
const BULK_NODE_PORT: u16 = 30_090;
const BULK_LOCAL_NODE_PORT: u16 = 30_091;
/// Ports of the node that no Service has.
const KLIPPER_WEB: u16 = 18_100;
const KLIPPER_BULK: u16 = 18_101;
const PROXY_WEB: u16 = 18_110;
const PROXY_BULK: u16 = 18_111;
/// Ports of Services that [`Bed::start`] makes.
pub(crate) const OWN_PORTS: usize = 9;

const READY: Duration = Duration::from_secs(30);
const ATTEMPT: Duration = Duration::from_millis(500);

/// Whether Highwire's table sees the node's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Presence {
    /// Its chains are at no hook, as if it were not there.
    Absent,
    /// As always.
    Present,
}

impl Presence {
    /// In the order in which they are measured.
    pub(crate) const BOTH: [Self; 2] = [Self::Absent, Self::Present];
}

/// What is measured on.
pub(crate) struct Bed {
    pub(crate) cluster: Cluster,
    pub(crate) scope: Scope,
    pub(crate) client: Netns,
    pub(crate) node: Node,
    pub(crate) agent: Program,
    pub(crate) other: OtherNode,
    /// The processes that answer requests.
    pub(crate) servers: Vec<Unit>,
    pods: Vec<Pod>,
    bulk_pod: Pod,
    klipper: Pod,
    proxy: Unit,
    web: Svc,
    web_local: Svc,
}

impl Bed {
    /// Starts everything, and waits until every path answers.
    pub(crate) async fn start(cluster: &Cluster) -> Result<Self> {
        let scope = Scope::new(cluster, "data-path").await?;
        let node = cluster.node(NODE)?;
        let client = cluster.outside();
        let mut pods = Vec::new();
        let mut running = Vec::new();
        for number in 1..=PODS {
            let pod = scope.pod(&format!("web-{number}")).label("app", "web");
            // The harness's own server stays idle.
            let pod = pod.tcp(8079).start().await?;
            let name = format!("web-{number}");
            running.push(servers::web(cluster, &pod.netns(), &name)?);
            pods.push(pod);
        }
        let bulk_pod = scope.pod("bulk").tcp(8079).start().await?;
        servers::bulk(cluster, &bulk_pod.netns(), "iperf3")?;
        let other = OtherNode::start(cluster, &scope, &mut running).await?;

        let web = scope.service("web").load_balancer().tcp(WEB_PORT, WEB);
        let web = web.create().await?;
        let web_local = scope.service("web-local").load_balancer();
        let web_local = web_local.select("app", "web").external_local();
        let web_local = web_local.tcp(WEB_LOCAL_PORT, WEB).create().await?;
        let bulk = scope.service("bulk").load_balancer();
        let bulk = bulk.spec("ports", both(BULK_PORT, BULK_NODE_PORT));
        let bulk = bulk.create().await?;
        let bulk_local = scope.service("bulk-local").load_balancer();
        let bulk_local = bulk_local.select("app", "bulk").external_local();
        let bulk_local = bulk_local.spec("ports", both(BULK_LOCAL_PORT, BULK_LOCAL_NODE_PORT));
        bulk_local.create().await?;

        let forward = |protocol, host_port, service: &Svc, port| -> Result<Forward> {
            Ok(Forward {
                protocol,
                host_port,
                cluster_ip: service.cluster_ip()?,
                port,
            })
        };
        let forwards = [
            forward("tcp", KLIPPER_WEB, &web, WEB_PORT)?,
            forward("tcp", KLIPPER_BULK, &bulk, BULK_PORT)?,
            forward("udp", KLIPPER_BULK, &bulk, BULK_PORT)?,
        ];
        let nodes = [node.netns(), other.node.netns()];
        let klipper = klipper::start(&scope, &nodes, &forwards).await?;
        let backends: Vec<SocketAddr> = pods.iter().map(|pod| pod.at(WEB)).collect();
        let listen = (PROXY_WEB, PROXY_BULK);
        let proxy = servers::proxy(cluster, node.netns(), listen, &backends, bulk_pod.at(BULK))?;

        let bed = Self {
            cluster: cluster.clone(),
            client,
            agent: cluster.agent(NODE)?,
            other,
            servers: running,
            pods,
            bulk_pod,
            klipper,
            proxy,
            web,
            web_local,
            scope,
            node,
        };
        bed.prepare_namespaces()?;
        for agent in bed.agents() {
            wait_for("all ports on the node", READY, || async {
                let ports = agent.metric("highwire_agent_ports")?;
                (ports as usize >= OWN_PORTS)
                    .then_some(())
                    .with_context(|| format!("{ports} ports"))
            })
            .await;
        }
        bed.wait_until_all_answer().await;
        Ok(bed)
    }

    /// Those of both nodes.
    pub(crate) fn agents(&self) -> [&Program; 2] {
        [&self.agent, &self.other.agent]
    }

    /// The node that a path leads over.
    pub(crate) fn node(&self, path: Path) -> &Node {
        match path {
            Path::NodePortThere | Path::WithoutProxy => &self.other.node,
            Path::Pod
            | Path::NodePort
            | Path::Highwire
            | Path::NodePortLocal
            | Path::HighwireLocal
            | Path::Klipper
            | Path::Proxy => &self.node,
        }
    }

    /// Addresses by which a path leads to nginx. Of the straight path one for each Pod.
    pub(crate) fn web(&self, path: Path) -> Result<Vec<SocketAddr>> {
        let port = match path {
            Path::Pod => return Ok(self.pods.iter().map(|pod| pod.at(WEB)).collect()),
            Path::NodePort => self.web.node_port(WEB_PORT)?,
            Path::Highwire => WEB_PORT,
            Path::NodePortLocal => self.web_local.node_port(WEB_LOCAL_PORT)?,
            Path::HighwireLocal => WEB_LOCAL_PORT,
            Path::Klipper => KLIPPER_WEB,
            Path::Proxy => PROXY_WEB,
            Path::WithoutProxy => self.other.web()?[0],
            Path::NodePortThere => self.other.web()?[1],
        };
        Ok(vec![self.node(path).v4(port)])
    }

    /// The address by which a path leads to iperf3.
    pub(crate) fn bulk(&self, path: Path) -> SocketAddr {
        let port = match path {
            Path::Pod => return self.bulk_pod.at(BULK),
            Path::NodePort => BULK_NODE_PORT,
            Path::Highwire => BULK_PORT,
            Path::NodePortLocal => BULK_LOCAL_NODE_PORT,
            Path::HighwireLocal => BULK_LOCAL_PORT,
            Path::Klipper => KLIPPER_BULK,
            Path::Proxy => PROXY_BULK,
            Path::WithoutProxy => self.other.bulk()[0],
            Path::NodePortThere => self.other.bulk()[1],
        };
        self.node(path).v4(port)
    }

    /// The network namespace of klipper-lb's Pod.
    pub(crate) fn klipper(&self) -> Netns {
        self.klipper.netns()
    }

    /// What the proxy logged last.
    pub(crate) fn proxy_log(&self) -> String {
        self.proxy.tail(10)
    }

    /// Makes the kernel forget all connections, so that no round pays for the one before.
    pub(crate) fn forget_connections(&self) -> Result<()> {
        let nodes = [self.node.netns(), self.other.node.netns()];
        for netns in nodes.into_iter().chain([&self.klipper.netns()]) {
            netns.check(&["conntrack", "--flush"])?;
        }
        Ok(())
    }

    /// Takes the chains of Highwire's table from their hooks or puts them there. An agent that
    /// runs would put them back.
    pub(crate) fn set_table(&self, presence: Presence) -> Result<()> {
        let flags = match presence {
            Presence::Absent => "{ flags dormant; }",
            Presence::Present => "",
        };
        let command = format!("add table inet highwire {flags}");
        self.node.netns().check(&["nft", &command]).map(drop)
    }

    fn prepare_namespaces(&self) -> Result<()> {
        // Clients outside have no route to Pods; the straight path needs one.
        let fabric = self.cluster.netns("fabric")?;
        for node in [&self.node, &self.other.node] {
            let (index, via) = (node.index, node.v4(0).ip());
            fabric.ip_batch(&format!("route replace 10.244.{index}.0/24 via {via}"))?;
        }
        // Whoever closes a connection keeps it for a minute, in which it collides with new
        // ones from kube-proxy's random ports: each round would be slower than the last.
        let no_time_wait = ("net/ipv4/tcp_max_tw_buckets", "1");
        for pod in self.pods.iter().chain(&self.other.pods) {
            pod.netns().sysctl(&[no_time_wait])?;
        }
        for node in [&self.node, &self.other.node] {
            node.netns().sysctl(&[no_time_wait])?;
        }
        let ports = ("net/ipv4/ip_local_port_range", "1024 65535");
        self.client.sysctl(&[no_time_wait, ports])
    }

    async fn wait_until_all_answer(&self) {
        wait_for("an answer by every path", READY, || async {
            for path in Path::ALL {
                for to in self.web(path)? {
                    let answer = self.client.run(|| http_text(to, "/", ATTEMPT));
                    answer.with_context(|| format!("{} ({to})", path.name()))?;
                }
            }
            anyhow::Ok(())
        })
        .await;
    }
}

/// TCP and UDP on the same port and the same NodePort.
pub(crate) fn both(port: u16, node_port: u16) -> Value {
    let port = |protocol: &str| {
        json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": port,
                "targetPort": BULK, "nodePort": node_port })
    };
    json!([port("TCP"), port("UDP")])
}
