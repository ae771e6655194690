//! More Services, so that the measured ones are some of many.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use highwire_e2e::{Pod, Svc, wait_for};
use serde_json::{Value, json};

use crate::data_path::bed::Bed;
use crate::data_path::cpu::namespace_time;

/// Ports of one Service, at most.
const EACH: usize = 100;
/// The first of the ports.
const FIRST: usize = 20_000;
const AT_A_TIME: usize = 8;
/// For kube-proxy to program thousands of ports.
const PROGRAMMED: Duration = Duration::from_secs(300);
/// For everything to come to rest after that.
const CALM: Duration = Duration::from_secs(180);
/// Over which the cluster must have been calm.
const WINDOW: Duration = Duration::from_secs(1);

/// Services that only fill tables: their only endpoint is this Pod.
pub(crate) struct Filling {
    _pod: Pod,
    ports: usize,
}

impl Filling {
    /// Starts the Pod.
    pub(crate) async fn start(bed: &Bed) -> Result<Self> {
        let pod = bed.scope.pod("filling").tcp(8079).start().await?;
        Ok(Self {
            _pod: pod,
            ports: 0,
        })
    }

    /// Creates Services until the node forwards `total` ports, and waits until kube-proxy has
    /// them all and nothing moves any more.
    ///
    /// They get no NodePorts: there are fewer of those than ports here.
    pub(crate) async fn grow_to(&mut self, bed: &Bed, total: usize) -> Result<()> {
        let before = bed.agent.metric("highwire_agent_ports")? as usize;
        let missing = total.saturating_sub(before);
        let first = FIRST + self.ports;
        let ports: Vec<usize> = (first..first + missing).collect();
        let services = ports.chunks(EACH).map(|ports| {
            let service = bed.scope.service(&format!("filling-{}", ports[0]));
            let service = service.load_balancer().select("app", "filling");
            let service = service.spec("allocateLoadBalancerNodePorts", json!(false));
            let ports: Vec<Value> = ports.iter().map(|port| one(*port)).collect();
            service.spec("ports", json!(ports)).create()
        });
        stream::iter(services)
            .buffer_unordered(AT_A_TIME)
            .map(unless_there)
            .try_collect::<Vec<()>>()
            .await?;
        self.ports += missing;
        for agent in bed.agents() {
            wait_for(&format!("{total} ports"), PROGRAMMED, || async {
                let programmed = agent.metric("highwire_agent_ports")?;
                let awaited = agent.metric("highwire_agent_awaited_ports")?;
                let seen = format!("{programmed} programmed, {awaited} awaited of kube-proxy");
                (programmed as usize == total && awaited == 0.0)
                    .then_some(())
                    .context(seen)
            })
            .await;
        }
        calm(bed).await;
        Ok(())
    }
}

/// The client sends a request again whose answer does not come, and may then find what it
/// created itself.
fn unless_there(created: Result<Svc>) -> Result<()> {
    let Err(error) = created else { return Ok(()) };
    match error.downcast_ref() {
        Some(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        _ => Err(error),
    }
}

fn one(port: usize) -> Value {
    json!({ "name": format!("p{port}"), "port": port, "targetPort": 8079 })
}

/// Waits until all processes of the cluster together use less than a third of a processor.
async fn calm(bed: &Bed) {
    wait_for("the cluster to be calm", CALM, || async {
        let pid = bed.agent.unit().pid().context("the agent has ended")?;
        let before = namespace_time(pid)?;
        tokio::time::sleep(WINDOW).await;
        let used = namespace_time(pid)? - before;
        (used < WINDOW.as_secs_f64() / 3.0)
            .then_some(())
            .with_context(|| format!("{used:.2} s of processor time in {WINDOW:?}"))
    })
    .await;
}
