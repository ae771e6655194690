//! Two controllers, each cut off in turn, and one stopped past its Lease: never two that
//! write, by the API server's own log.

use std::time::Duration;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster::audit;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::LONG;
use highwire_e2e::faulty_api::{Fault, FaultyApi, Requests, Rule, Verb};
use highwire_e2e::highwire::workload::NAMESPACE;
use highwire_e2e::{Cluster, Node, PrivateCluster, Program, Scope, highwire, wait_for};
use macro_rules_attribute::apply;
use nix::sys::signal::Signal;

use super::bed::{listed, on_node};

/// Longer than a request of the election may take.
const TOO_LATE: Duration = Duration::from_secs(3);

/// A controller and its network.
struct Candidate {
    program: Program,
    faulty: FaultyApi,
}

async fn candidate(cluster: &Cluster, name: &str) -> Result<Candidate> {
    let faulty = FaultyApi::start(cluster).await?;
    let program = cluster.controller(name)?.through(&faulty);
    program.start(&[]).await?;
    program.wait_ready(highwire::READY).await?;
    Ok(Candidate { program, faulty })
}

/// The one that leads, and the other.
async fn in_office<'a>(
    cluster: &Cluster,
    [one, two]: &'a [Candidate; 2],
) -> (&'a Candidate, &'a Candidate) {
    let leads = |it: &Candidate| it.program.metric("highwire_controller_leader").ok() == Some(1.0);
    wait_for("one leader", LONG, || async {
        let holder = highwire::leader(cluster).await?;
        match (leads(one), leads(two)) {
            (true, false) if holder == "c1" => Ok((one, two)),
            (false, true) if holder == "c2" => Ok((two, one)),
            other => anyhow::bail!("{other:?}, and the Lease is {holder}'s"),
        }
    })
    .await
}

/// Services that need a write each, and then the next ones.
struct Work<'a> {
    scope: &'a Scope,
    node: &'a Node,
    number: u32,
}

impl Work<'_> {
    async fn more(&mut self, services: u32) -> Result<Vec<highwire_e2e::Svc>> {
        let mut created = Vec::new();
        for _ in 0..services {
            self.number += 1;
            let (name, port) = (format!("s{}", self.number), self.scope.free_port()?);
            created.push(on_node(self.scope, &name, port, self.node).await?);
        }
        Ok(created)
    }

    /// Services that no node serves: why not is written after a moment.
    async fn for_later(&mut self, services: u32) -> Result<()> {
        for _ in 0..services {
            self.number += 1;
            let service = self.scope.service(&format!("s{}", self.number));
            let service = service.annotation("highwire.dev/node-selector", "pool=none");
            let port = self.scope.free_port()?;
            service.load_balancer().tcp(port, 8080).create().await?;
        }
        Ok(())
    }
}

#[apply(cluster_test)]
async fn of_two_controllers_only_the_one_that_holds_the_lease_writes() -> Result<()> {
    let cluster = PrivateCluster::up("two", 1).await?;
    highwire::apply(&cluster)?;
    cluster.opt_in("n1").await?;
    let agent = cluster.agent("n1")?;
    agent.start(&[]).await?;
    agent.wait_ready(highwire::READY).await?;
    let both = [
        candidate(&cluster, "c1").await?,
        candidate(&cluster, "c2").await?,
    ];
    let scope = Scope::new(&cluster, "two").await?;
    let node = cluster.node("n1")?;
    scope
        .pod("web")
        .on("n1")
        .label("app", "web")
        .tcp(8080)
        .start()
        .await?;
    let (mut work, mut number) = (
        Work {
            scope: &scope,
            node: &node,
            number: 0,
        },
        0,
    );

    // Its requests are not answered, closed, or carried out too late to be of its time.
    let late = Fault::Delay(TOO_LATE);
    for fault in [Fault::NoAnswer, Fault::Close, late] {
        let (first, second) = in_office(&cluster, &both).await;
        let watches = Requests::all().only(&[Verb::Watch]);
        first.faulty.set(vec![
            Rule::new(watches, Fault::Close),
            Rule::new(Requests::all(), fault),
        ]);
        let meanwhile = work.more(3).await?;
        wait_for("the other to lead", LONG, || async {
            let holder = highwire::leader(&cluster).await?;
            ensure!(second.program.unit().name().ends_with(&holder), "{holder}");
            Ok(())
        })
        .await;
        // It comes back while the other writes.
        first.faulty.clear();
        let later = work.more(3).await?;
        for service in meanwhile.iter().chain(&later) {
            listed(service, &node).await;
        }
        number += 6;
    }

    // It is stopped past its Lease, with writes that are due by the time it goes on.
    for _ in 0..3 {
        let (first, second) = in_office(&cluster, &both).await;
        let meanwhile = work.more(10).await?;
        work.for_later(5).await?;
        first.program.unit().signal(Signal::SIGSTOP)?;
        wait_for("the other to lead", LONG, || async {
            let holder = highwire::leader(&cluster).await?;
            ensure!(second.program.unit().name().ends_with(&holder), "{holder}");
            Ok(())
        })
        .await;
        // Neither hears of these before it goes on.
        let later = work.more(10).await?;
        first.program.unit().signal(Signal::SIGCONT)?;
        for service in meanwhile.iter().chain(&later) {
            listed(service, &node).await;
        }
        number += 20;
    }

    let verdict = audit::judge(cluster.state(), NAMESPACE)?;
    println!("{verdict:?}");
    ensure!(verdict.outside.is_empty(), "{:#?}", verdict.outside);
    let writes: usize = verdict.writes.values().sum();
    ensure!(verdict.writes.len() == 2 && writes >= number, "{verdict:?}");
    ensure!(verdict.changes >= 6, "{verdict:?}");
    Ok(())
}
