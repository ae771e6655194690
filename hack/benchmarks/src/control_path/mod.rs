//! From a Service in the API to its port in the kernel and its ingress.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwire_e2e::traffic::http_get;
use highwire_e2e::{Cluster, Netns, Program, Programs as _, Scope, Svc, highwire, wait_for};

use crate::Effort;
use crate::output::counts::Counts;
use crate::output::document::Document;

/// Services created one after the other for the latency figures.
const CREATED: usize = 100;
/// How long one Service may take before the run is given up.
const LIMIT: Duration = Duration::from_secs(20);
const ATTEMPT: Duration = Duration::from_millis(250);
/// Between two attempts of one prober.
const PAUSE: Duration = Duration::from_millis(2);

/// Measures the control path.
pub(crate) async fn measure(
    cluster: &Cluster,
    effort: Effort,
    _counts: &mut Counts,
) -> Result<Document> {
    let mode = cluster.config().proxy_modes.as_str();
    let document = Document::new(&format!("control-path-{mode}"), "Control path");
    if effort == Effort::Quick {
        return Ok(document);
    }
    highwire::require(cluster)?;
    let scope = Scope::new(cluster, "control-path").await?;
    for (pod, node) in [("web-1", "n1"), ("web-2", "n2")] {
        let pod = scope.pod(pod).on(node).label("app", "web").tcp(8080);
        pod.start().await?;
    }
    latency(cluster, &scope).await?;
    memory(cluster, &scope).await?;
    Ok(document)
}

async fn create(scope: &Scope, name: &str) -> Result<(u16, Svc)> {
    let port = scope.free_port()?;
    let service = scope
        .service(name)
        .load_balancer()
        .select("app", "web")
        .tcp(port, 8080);
    Ok((port, service.create().await?))
}

/// Waits until the ingress lists every opted-in node.
async fn advertised(service: &Svc) -> Result<()> {
    let start = Instant::now();
    while service.ingress().await?.len() < highwire::SERVING.len() {
        ensure!(start.elapsed() < LIMIT, "no ingress within {LIMIT:?}");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Milliseconds from the request to create a Service.
struct Times {
    /// Until its port answered on every opted-in node.
    answered: Vec<f64>,
    /// Until its NodePort answered on every opted-in node.
    node_port: Vec<f64>,
    /// Until its ingress listed every opted-in node.
    ingress: Vec<f64>,
    /// From then until its port answered there; negative if it did before.
    late: Vec<f64>,
}

async fn latency(cluster: &Cluster, scope: &Scope) -> Result<()> {
    let mut times = Times {
        answered: vec![],
        node_port: vec![],
        ingress: vec![],
        late: vec![],
    };
    for index in 0..CREATED {
        let start = Instant::now();
        let (port, service) = create(scope, &format!("latency-{index}")).await?;
        let node_port = service.node_port(port)?;
        let mut answered = Vec::new();
        let mut by_node_port = Vec::new();
        for node in highwire::SERVING {
            let node = cluster.node(node)?;
            answered.push(probe(cluster.outside(), node.v4(port), start));
            by_node_port.push(probe(cluster.outside(), node.v4(node_port), start));
        }
        advertised(&service).await?;
        let ingress = milliseconds(start);
        let answered = last_of(answered)?;
        times.late.push(answered - ingress);
        times.ingress.push(ingress);
        times.answered.push(answered);
        times.node_port.push(last_of(by_node_port)?);
        service.delete().await?;
    }
    println!("Service created → …, {CREATED} Services one by one, ms      p50      p99      max");
    let answered = row(
        "first byte through every opted-in node",
        &mut times.answered,
    );
    let node_port = row(
        "first byte through their NodePorts (kube-proxy)",
        &mut times.node_port,
    );
    row("ingress lists every opted-in node", &mut times.ingress);
    row("first byte − ingress", &mut times.late);
    println!(
        "first byte, Highwire ÷ NodePort: p50 {:.2}, p99 {:.2}\n",
        answered.0 / node_port.0,
        answered.1 / node_port.1
    );
    Ok(())
}

/// Asks until there is an answer; the milliseconds since `start`.
fn probe(from: Netns, to: SocketAddr, start: Instant) -> thread::JoinHandle<Result<f64>> {
    thread::spawn(move || {
        from.run(|| {
            while http_get(to, ATTEMPT).is_err() {
                ensure!(
                    start.elapsed() < LIMIT,
                    "{to} does not answer within {LIMIT:?}"
                );
                thread::sleep(PAUSE);
            }
            Ok(milliseconds(start))
        })
    })
}

fn last_of(probes: Vec<thread::JoinHandle<Result<f64>>>) -> Result<f64> {
    let mut last = 0.0_f64;
    for probe in probes {
        let time = probe.join().ok().context("a prober panicked")??;
        last = last.max(time);
    }
    Ok(last)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Prints a row and returns p50 and p99.
fn row(what: &str, times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    println!("  {what:<55}{p50:8.0} {p99:8.0} {max:8.0}");
    (p50, p99)
}

async fn memory(cluster: &Cluster, scope: &Scope) -> Result<()> {
    let agent = cluster.agent("n1")?;
    println!("agent on n1                              RSS MiB");
    let mut services = Vec::new();
    for wanted in [0, 50, 1000] {
        while services.len() < wanted {
            services.push(create(scope, &format!("memory-{}", services.len())).await?);
        }
        settled(&agent, wanted).await;
        let rss = agent.unit().rss_kib().context("the agent does not run")? as f64 / 1024.0;
        println!("  {wanted:>5} Services                         {rss:8.1}");
    }
    let version = services.last().context("no Services")?;
    wait_for("the last ingress", LIMIT * 3, || async {
        version
            .1
            .ingress()
            .await
            .is_ok_and(|ingress| ingress.len() == highwire::SERVING.len())
    })
    .await;
    let rss = agent.unit().rss_kib().context("the agent does not run")? as f64 / 1024.0;
    println!("  the same once every status is written  {rss:8.1}");
    Ok(())
}

async fn settled(agent: &Program, services: usize) {
    wait_for(&format!("{services} Services"), LIMIT * 3, || async {
        let served = agent
            .metric("highwire_agent_services")
            .map_err(|error| error.to_string())?;
        if served == services as f64 {
            Ok(())
        } else {
            Err(served.to_string())
        }
    })
    .await;
}
