//! One Service after the other: from the request that creates it until it is in the kernel,
//! answers, and is listed.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwire_e2e::traffic::http_get;
use highwire_e2e::{Cluster, Netns, Program, Programs as _, Scope, Svc, highwire};

use super::process::Cpu;
use super::{kernel, services};
use crate::frozen::Frozen;
use crate::output::stats::Sample;

/// How long one Service may take before the run is given up.
const LIMIT: Duration = Duration::from_secs(60);
const ATTEMPT: Duration = Duration::from_millis(250);
/// Between two attempts of one prober.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two questions to a kernel.
const KERNEL_PAUSE: Duration = Duration::from_micros(500);

/// Milliseconds from the request to create a Service, on the last of the serving nodes.
#[derive(Default)]
struct Times {
    kernel: Vec<f64>,
    kernel_alone: Vec<f64>,
    answered: Vec<f64>,
    node_port: Vec<f64>,
    ingress: Vec<f64>,
    after_ingress: Vec<f64>,
}

/// What was measured of many Services.
pub(crate) struct Created {
    /// Until its port was in the kernel.
    pub(crate) kernel: Sample,
    /// The same of others, while the kube-proxies were stopped.
    pub(crate) kernel_alone: Sample,
    /// Until it answered.
    pub(crate) answered: Sample,
    /// Until its NodePort answered, which is kube-proxy's own work.
    pub(crate) node_port: Sample,
    /// Until its ingress listed every serving node.
    pub(crate) ingress: Sample,
    /// From then until it answered: below 0 if it answered before.
    pub(crate) after_ingress: Sample,
    /// What that cost the agent of the first node, by Service.
    pub(crate) cost: Cost,
}

/// What the creation and the deletion of one Service cost an agent, on average.
pub(crate) struct Cost {
    /// Transactions.
    pub(crate) transactions: f64,
    /// Elements that they added and deleted.
    pub(crate) elements: f64,
    /// Bytes that nft or the kernel was given.
    pub(crate) bytes: f64,
    /// Milliseconds of one transaction.
    pub(crate) transaction: f64,
    /// Milliseconds of CPU, nft's included.
    pub(crate) cpu: f64,
}

/// Sums of an agent's counters.
pub(crate) struct Counters([f64; 4]);

impl Counters {
    /// Reads them.
    pub(crate) fn of(agent: &Program) -> Result<Self> {
        let read = |series: &str| agent.metric(&format!("highwire_agent_{series}"));
        Ok(Self([
            read("apply_seconds_count")?,
            read("elements_changed_total")?,
            // Earlier agents do not count them.
            read("apply_bytes_total").unwrap_or(0.0),
            read("apply_seconds_sum")?,
        ]))
    }

    /// What came since `earlier`, per Service of `services`; `cpu` in seconds.
    pub(crate) fn since(&self, earlier: &Self, services: usize, cpu: f64) -> Cost {
        let [transactions, elements, bytes, seconds] =
            std::array::from_fn(|index| self.0[index] - earlier.0[index]);
        let services = services as f64;
        Cost {
            transactions: transactions / services,
            elements: elements / services,
            bytes: bytes / services,
            transaction: seconds / transactions.max(1.0) * 1000.0,
            cpu: cpu / services * 1000.0,
        }
    }
}

/// How many Services are created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number {
    /// Followed until they answer and are listed.
    pub(crate) to_the_end: usize,
    /// Others, followed until they are in the kernel while the kube-proxies are stopped: these
    /// use the same processors, and take their time of the kernel's lock of nftables.
    pub(crate) alone: usize,
}

/// Creates Services, measures each, and deletes it.
pub(crate) async fn measure(
    cluster: &Cluster,
    scope: &Scope,
    prefix: &str,
    number: Number,
) -> Result<Created> {
    let agent = cluster.agent(highwire::SERVING[0])?;
    let (before, cpu) = (Counters::of(&agent)?, Cpu::of(agent.unit())?);
    let mut times = Times::default();
    for index in 0..number.to_the_end {
        to_the_end(cluster, scope, &format!("{prefix}-{index}"), &mut times).await?;
    }
    let cpu = Cpu::of(agent.unit())?.since(cpu);
    let cost = Counters::of(&agent)?.since(&before, number.to_the_end, cpu);
    let frozen = Frozen::kube_proxies(cluster)?;
    for index in 0..number.alone {
        let start = Instant::now();
        let (port, service) = services::create(scope, &format!("{prefix}-alone-{index}")).await?;
        times
            .kernel_alone
            .push(last_of(in_kernels(cluster, port, start)?)?);
        service.delete().await?;
    }
    drop(frozen);
    let sample = |values| Sample::new(values).context("nothing was measured");
    Ok(Created {
        kernel: sample(times.kernel)?,
        kernel_alone: sample(times.kernel_alone)?,
        answered: sample(times.answered)?,
        node_port: sample(times.node_port)?,
        ingress: sample(times.ingress)?,
        after_ingress: sample(times.after_ingress)?,
        cost,
    })
}

/// Until the serving nodes' kernels have the port.
fn in_kernels(
    cluster: &Cluster,
    port: u16,
    start: Instant,
) -> Result<Vec<thread::JoinHandle<Result<f64>>>> {
    let nodes = highwire::SERVING.iter();
    nodes
        .map(|node| {
            let place = cluster.node(node)?.netns().clone();
            Ok(watch(place, start, KERNEL_PAUSE, move || {
                kernel::serves_tcp(port)
            }))
        })
        .collect()
}

async fn to_the_end(cluster: &Cluster, scope: &Scope, name: &str, times: &mut Times) -> Result<()> {
    let start = Instant::now();
    let (port, service) = services::create(scope, name).await?;
    let node_port = service.node_port(port)?;
    let in_kernel = in_kernels(cluster, port, start)?;
    let (mut answered, mut by_node_port) = (vec![], vec![]);
    for node in highwire::SERVING {
        let node = cluster.node(node)?;
        answered.push(probe(cluster.outside(), node.v4(port), start));
        by_node_port.push(probe(cluster.outside(), node.v4(node_port), start));
    }
    advertised(&service, start).await?;
    let ingress = milliseconds(start);
    let answered = last_of(answered)?;
    times.ingress.push(ingress);
    times.answered.push(answered);
    times.after_ingress.push(answered - ingress);
    times.kernel.push(last_of(in_kernel)?);
    times.node_port.push(last_of(by_node_port)?);
    service.delete().await
}

/// Waits until the ingress lists every serving node.
pub(crate) async fn advertised(service: &Svc, start: Instant) -> Result<()> {
    while service.ingress().await?.len() < highwire::SERVING.len() {
        ensure!(start.elapsed() < LIMIT, "no ingress within {LIMIT:?}");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn probe(from: Netns, to: SocketAddr, start: Instant) -> thread::JoinHandle<Result<f64>> {
    watch(from, start, PAUSE, move || http_get(to, ATTEMPT).is_ok())
}

/// Asks in that namespace until it is so; the milliseconds since `start`.
pub(crate) fn watch(
    place: Netns,
    start: Instant,
    pause: Duration,
    is_so: impl Fn() -> bool + Send + Sync + 'static,
) -> thread::JoinHandle<Result<f64>> {
    thread::spawn(move || {
        place.run(|| {
            while !is_so() {
                ensure!(start.elapsed() < LIMIT, "it does not come within {LIMIT:?}");
                thread::sleep(pause);
            }
            Ok(milliseconds(start))
        })
    })
}

/// When the last of them was done.
pub(crate) fn last_of(watches: Vec<thread::JoinHandle<Result<f64>>>) -> Result<f64> {
    let mut last = 0.0_f64;
    for watch in watches {
        last = last.max(watch.join().ok().context("a watch panicked")??);
    }
    Ok(last)
}

/// Milliseconds since then.
pub(crate) fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
