//! Starts: of an agent, beside that of a kube-proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use highwire_e2e::{Cluster, Program, Programs as _, highwire};

use super::created::milliseconds;
use super::process::Cpu;
use crate::proc::Memory;

const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(5);
/// kube-proxy's metrics, in a node's namespace.
const PROXY_METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

/// What a start took.
pub(crate) struct Start {
    /// Milliseconds until all was programmed.
    pub(crate) time: f64,
    /// Milliseconds of CPU until then, with children.
    pub(crate) cpu: f64,
    /// The most memory until then, in MiB.
    pub(crate) memory: f64,
}

/// Kills an agent and starts it again; its table is still there if `warm`.
pub(crate) async fn agent(cluster: &Cluster, services: usize, warm: bool) -> Result<Start> {
    let node = cluster.node(highwire::SERVING[0])?;
    let agent = cluster.agent(&node.name)?;
    agent.kill()?;
    if !warm {
        node.netns()
            .check(&["nft", "delete", "table", "inet", "highwire"])?;
    }
    let start = Instant::now();
    agent.unit().start_again()?;
    while !is_serving(&agent, services) {
        ensure!(
            start.elapsed() < LIMIT,
            "the agent does not serve: {}",
            agent.unit().tail(20)
        );
        tokio::time::sleep(PAUSE).await;
    }
    let pid = agent.unit().pid().context("the agent has ended")?;
    taken(start, Cpu::of(agent.unit())?, pid)
}

fn is_serving(agent: &Program, services: usize) -> bool {
    // /readyz costs nothing; the metrics are asked once it answers.
    agent.get("/readyz").is_ok()
        && agent
            .metric("highwire_agent_services")
            .is_ok_and(|served| served == services as f64)
}

/// Kills the kube-proxy of the same node and starts it again; until its first sync is over.
pub(crate) async fn kube_proxy(cluster: &Cluster) -> Result<Start> {
    let node = cluster.node(highwire::SERVING[0])?;
    let unit = cluster.unit(&format!("kube-proxy-{}", node.name));
    unit.kill()?;
    let (start, begun) = (
        Instant::now(),
        SystemTime::now().duration_since(UNIX_EPOCH)?,
    );
    unit.start_again()?;
    let synced = || {
        let metrics = node
            .netns()
            .http_text(PROXY_METRICS, "/metrics", LIMIT)
            .ok()?;
        let lines = metrics.lines().filter(|line| line.starts_with(LAST_SYNC));
        let times = lines.map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        let times: Option<Vec<f64>> = times.collect();
        times.filter(|times| {
            !times.is_empty() && times.iter().all(|time| *time > begun.as_secs_f64())
        })
    };
    while synced().is_none() {
        ensure!(
            start.elapsed() < LIMIT,
            "kube-proxy does not sync: {}",
            unit.tail(20)
        );
        tokio::time::sleep(PAUSE * 10).await;
    }
    let pid = unit.pid().context("kube-proxy has ended")?;
    taken(start, Cpu::of(&unit)?, pid)
}

fn taken(start: Instant, cpu: Cpu, pid: i32) -> Result<Start> {
    let time = milliseconds(start);
    let memory = Memory::of(pid)?.peak;
    let cpu = cpu.total() * 1000.0;
    Ok(Start { time, cpu, memory })
}
