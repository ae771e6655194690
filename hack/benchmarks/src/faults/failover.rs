//! An agent dies: how long until its node is out of every ingress.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use highwire_e2e::{Cluster, Programs as _, Scope, Svc, wait_for};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams};
use serde_json::json;

use super::Amount;
use super::machine::Watched;
use super::serve_everywhere;
use crate::output::counts::Counts;
use crate::output::document::Document;
use crate::output::stats::Sample;
use crate::output::table::{Table, number};

const ROUNDS: usize = 50;
const SERVICES: usize = 20;
/// Agents renew their Leases every 4 s: so one dies at any moment of that.
const PHASE: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Kills one agent after the other, at random moments.
pub(crate) async fn measure(
    cluster: &Cluster,
    amount: Amount,
    counts: &mut Counts,
) -> Result<Document> {
    let rounds = amount.rounds.unwrap_or(ROUNDS);
    let nodes = serve_everywhere(cluster).await?;
    let scope = Scope::new(cluster, "failover").await?;
    let pod = scope.pod("web-1").label("app", "web");
    pod.tcp(8080).start().await?;
    let mut services = Vec::new();
    for index in 0..SERVICES {
        let service = scope.service(&format!("web-{index}")).load_balancer();
        let service = service.select("app", "web").tcp(scope.free_port()?, 8080);
        services.push(service.create().await?);
    }
    all_list(&services, nodes.len()).await;
    let watched = Watched::new(&cluster.outside())?;
    let mut random = fastrand::Rng::with_seed(amount.seed);
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let node = &nodes[round % nodes.len()];
        let agent = cluster.agent(&node.name)?;
        tokio::time::sleep(PHASE.mul_f64(random.f64())).await;
        let start = Instant::now();
        agent.kill()?;
        let address = node.addresses()[0].to_string();
        let mut left = None;
        loop {
            let listing = listing(&scope, &address).await?;
            if listing < SERVICES {
                left.get_or_insert_with(|| milliseconds(start));
            }
            if listing == 0 {
                break;
            }
            anyhow::ensure!(
                start.elapsed() < LIMIT,
                "{address} is still listed after {LIMIT:?}"
            );
            tokio::time::sleep(PAUSE).await;
        }
        last.push(milliseconds(start));
        first.push(left.context("it was not listed")?);
        agent.unit().start_again()?;
        all_list(&services, nodes.len()).await;
        eprintln!("failover {round}: {:.0} ms", last[round]);
    }
    counts.add("failover: nodes that left every ingress", last.len() as f64);

    let (first, last) = (sample(first)?, sample(last)?);
    let mut document = Document::new("faults-failover", "An agent dies");
    document.paragraph(&format!(
        "{} times an agent of one of {} nodes got SIGKILL, at a random moment (seed {}), and was \
         started again once its node's address was gone from the ingress of all {SERVICES} Services. \
         Every other node went on. The Lease is good for 12 s after it was last renewed, and is \
         renewed every 4 s. {}",
        last.count(), nodes.len(), amount.seed, watched.words()?
    ));
    let mut table = Table::new(&[
        "seconds from SIGKILL until the node is out of",
        "min",
        "p50",
        "p99",
        "max",
    ]);
    for (name, sample) in [("the first ingress", &first), ("every ingress", &last)] {
        let shares = [0.0, 0.5, 0.99, 1.0].map(|share| number(sample.percentile(share) / 1e3));
        table.row([name.to_owned()].into_iter().chain(shares));
    }
    document.table(table);
    document.data(json!({
        "rounds": last.count(), "nodes": nodes.len(), "services": SERVICES, "seed": amount.seed,
        "p50_ms": last.median(), "p99_ms": last.percentile(0.99), "max_ms": last.max(),
    }));
    Ok(document)
}

fn sample(values: Vec<f64>) -> Result<Sample> {
    Sample::new(values).context("nothing was measured")
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// How many Services list the address.
async fn listing(scope: &Scope, address: &str) -> Result<usize> {
    let api: Api<Service> = Api::namespaced(scope.cluster().client(), scope.namespace());
    let list = api.list(&ListParams::default()).await?;
    let lists = |service: &&Service| {
        let status = service.status.as_ref();
        let balancer = status.and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
        let mut addresses = ingress
            .into_iter()
            .flatten()
            .filter_map(|it| it.ip.as_deref());
        addresses.any(|ip| ip == address)
    };
    Ok(list.iter().filter(lists).count())
}

async fn all_list(services: &[Svc], nodes: usize) {
    for service in services {
        let what = format!("{} to list {nodes} nodes", service.name());
        wait_for(&what, LIMIT, || async {
            match service.ingress_ips().await {
                Ok(found) if found.len() == nodes => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}
