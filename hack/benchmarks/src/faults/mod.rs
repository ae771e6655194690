//! What breaks, or is replaced, while clients go on: counted, not only asserted.
//!
//! Each file is a part of `hack/bench`. A short run of each is a test: it compares counts, of
//! which the first is that no request was lost.

mod bed;
mod failover;
mod kills;
mod loss;
mod machine;
mod memory;
mod overload;
mod repair;
mod replace;
mod table;

use anyhow::Result;
use clap::Args;
use highwire_e2e::{Cluster, Node, Programs as _, highwire};

use crate::Effort;
use crate::output::counts::Counts;
use crate::output::document::Document;

/// How much is done.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// loss: how often every agent and every controller is replaced by a new process.
    #[arg(long, default_value_t = 100)]
    updates: usize,
    /// loss: new TCP connections a second; of other requests there are eight for ten of these.
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// loss: how many requests at least; updates go on until then.
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,
    /// failover: agents killed; 50 if left out. repair: tables taken away, 200. kills: agents
    /// killed, 200.
    #[arg(long)]
    rounds: Option<usize>,
    /// overload: how many Services.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// overload: changes of Services a second.
    #[arg(long, default_value_t = 50)]
    changes: u32,
    /// overload: for how many seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// kills, overload: what chance begins with; the same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Amount {
    /// As little as shows that it works.
    fn quick(self) -> Self {
        Self {
            updates: 1,
            rate: 200,
            requests: 0,
            rounds: Some(2),
            services: 300,
            changes: 25,
            seconds: 4,
            ..self
        }
    }

    fn for_effort(self, effort: Effort) -> Self {
        match effort {
            Effort::Full => self,
            Effort::Quick => self.quick(),
        }
    }
}

/// Which fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Agents and controllers are replaced.
    Loss,
    /// A node's agent dies.
    Failover,
    /// Another program takes the table away.
    Repair,
    /// An agent or its nft is killed in the middle of a change.
    Kills,
    /// Many Services, and many changes of them.
    Overload,
}

impl Fault {
    /// Measures it.
    pub(crate) async fn measure(
        self,
        cluster: &Cluster,
        effort: Effort,
        amount: Amount,
        counts: &mut Counts,
    ) -> Result<Document> {
        let amount = amount.for_effort(effort);
        match self {
            Self::Loss => loss::measure(cluster, amount, counts).await,
            Self::Failover => failover::measure(cluster, amount, counts).await,
            Self::Repair => repair::measure(cluster, effort, amount, counts).await,
            Self::Kills => kills::measure(cluster, amount, counts).await,
            Self::Overload => overload::measure(cluster, amount, counts).await,
        }
    }
}

/// Has every node of the cluster serve, not only those that do from the start; all of them.
async fn serve_everywhere(cluster: &Cluster) -> Result<Vec<Node>> {
    highwire::require(cluster)?;
    for node in cluster.nodes() {
        let agent = cluster.agent(&node.name)?;
        if !agent.is_running() {
            cluster.opt_in(&node.name).await?;
            agent.start(&[]).await?;
        }
        agent.wait_ready(highwire::READY).await?;
    }
    Ok(cluster.nodes())
}
