//! A second node like the first, with Pods of its own, whose agent runs as on a node without
//! kube-proxy. kube-proxy stays: its rules see no packet that the agent's nat rule has taken,
//! so the same node has a NodePort to compare with.

use anyhow::Result;
use highwire_e2e::{Cluster, Node, Pod, Program, Programs as _, Scope, Svc, Unit, highwire};

use crate::data_path::bed::{PODS, both};
use crate::data_path::servers::{self, WEB};

/// The node.
pub(crate) const NODE: &str = "n2";
const WEB_PORT: u16 = 18_082;
const BULK_PORT: u16 = 18_092;
const BULK_NODE_PORT: u16 = 30_092;

/// The node and what is on it.
pub(crate) struct OtherNode {
    pub(crate) node: Node,
    pub(crate) agent: Program,
    pub(crate) pods: Vec<Pod>,
    _bulk_pod: Pod,
    web: Svc,
}

impl OtherNode {
    /// Starts everything; the processes that answer requests are added to `servers`.
    pub(crate) async fn start(
        cluster: &Cluster,
        scope: &Scope,
        servers: &mut Vec<Unit>,
    ) -> Result<Self> {
        let agent = cluster.agent(NODE)?;
        agent.stop()?;
        agent.start(&["--service-proxy=none"]).await?;
        agent.wait_ready(highwire::READY).await?;
        let mut pods = Vec::new();
        for number in 1..=PODS {
            let name = format!("there-{number}");
            let pod = scope.pod(&name).on(NODE).label("app", "there");
            let pod = pod.tcp(8079).start().await?;
            servers.push(servers::web(cluster, &pod.netns(), &name)?);
            pods.push(pod);
        }
        let bulk_pod = scope.pod("bulk-there").on(NODE).tcp(8079).start().await?;
        servers::bulk(cluster, &bulk_pod.netns(), "iperf3-there")?;
        let web = scope.service("there").load_balancer();
        let web = web.tcp(WEB_PORT, WEB).create().await?;
        let bulk = scope.service("bulk-there").load_balancer();
        let bulk = bulk.spec("ports", both(BULK_PORT, BULK_NODE_PORT));
        bulk.create().await?;
        Ok(Self {
            node: cluster.node(NODE)?,
            agent,
            pods,
            _bulk_pod: bulk_pod,
            web,
        })
    }

    /// Where nginx answers: at the Service's port, and at its NodePort.
    pub(crate) fn web(&self) -> Result<[u16; 2]> {
        Ok([WEB_PORT, self.web.node_port(WEB_PORT)?])
    }

    /// The same of iperf3.
    pub(crate) fn bulk(&self) -> [u16; 2] {
        [BULK_PORT, BULK_NODE_PORT]
    }

    /// Has the agent run as it did before.
    pub(crate) async fn end(&self) -> Result<()> {
        self.agent.stop()?;
        self.agent.start(&[]).await?;
        self.agent.wait_ready(highwire::READY).await
    }
}
