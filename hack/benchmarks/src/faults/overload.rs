//! Many Services, a steady stream of changes, many conflicts: memory, transactions, the last
//! state, and clients of Services that have nothing to do with it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use highwire_e2e::lab::wait::try_wait_for;
use highwire_e2e::{Cluster, Program, Programs as _, highwire};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::Amount;
use super::bed::{Bed, lost, own_trouble};
use super::machine::Watched;
use super::memory::Watch;
use super::table::{Held, list};
use crate::load::{Load, Tally};
use crate::output::counts::Counts;
use crate::output::document::Document;
use crate::output::table::{Table, number};

const PREFIX: &str = "over-";
const CONTENDER: &str = "contender-";
/// Ports of the many: beyond NodePorts.
const FIRST_PORT: usize = 40_000;
const PORTS: usize = 25_000;
/// Requests at a time.
const AT_ONCE: usize = 16;
/// New connections a second to the Services that have nothing to do with it.
const RATE: f64 = 50.0;
/// How long agents and controllers may take to follow.
const LIMIT: Duration = Duration::from_secs(600);
/// Services that want a port that another one has, for each ten of the many.
const CONTENDERS_OF_TEN: usize = 1;
const RANGES: [&str; 2] = ["198.51.100.0/24", "203.0.113.0/24"];

/// Does all of that.
pub(crate) async fn measure(
    cluster: &Cluster,
    amount: Amount,
    counts: &mut Counts,
) -> Result<Document> {
    let bed = Bed::new(cluster, "overload").await?;
    // What kube-proxy takes of this machine is not the question: it programs when nobody else
    // has anything to do.
    last_in_turn(cluster)?;
    let time = Duration::from_secs(amount.seconds);
    let run = Run {
        api: Api::namespaced(cluster.client(), bed.scope.namespace()),
        bed: &bed,
        agents: [
            cluster.agent(highwire::SERVING[0])?,
            cluster.agent(highwire::SERVING[1])?,
        ],
        amount,
    };
    let watched = Watched::new(&bed.client())?;
    let memory = Watch::start(run.units()?);
    let mut phases = Vec::new();

    phases.push(
        run.phase("nothing changes, no other Service", async || {
            tokio::time::sleep(time.min(Duration::from_secs(60))).await
        })
        .await?,
    );
    run.create(
        PREFIX,
        amount.services,
        |index| FIRST_PORT + index % PORTS,
        &[],
    )
    .await?;
    run.settled().await?;
    memory.mark("all Services there");
    phases.push(
        run.phase("nothing changes, all Services there", async || {
            tokio::time::sleep(time.min(Duration::from_secs(60))).await
        })
        .await?,
    );
    let mut made = 0;
    phases.push(
        run.phase("Services change", async || {
            made = run.change(time).await.unwrap_or(0)
        })
        .await?,
    );
    memory.mark("changes over");
    ensure!(made > 0, "no change was made");
    let caught_up = Instant::now();
    run.settled().await?;
    let caught_up = caught_up.elapsed();
    let conflicts = amount.services * CONTENDERS_OF_TEN / 10;
    phases.push(
        run.phase("conflicts come and go", async || {
            if let Err(error) = run.contend(conflicts).await {
                eprintln!("overload: {error:#}");
            }
        })
        .await?,
    );
    memory.mark("conflicts gone");
    let wrong = run.differences().await?;
    let words = watched.words()?;
    let memory = memory.stop();

    let all: Vec<Tally> = phases
        .iter()
        .filter_map(|phase| Tally::total(&phase.tallies))
        .collect();
    let total = Tally::total(&all).context("no phase")?;
    for fault in &total.faults {
        eprintln!("lost: {fault}");
    }
    let changing = phases
        .iter()
        .find(|phase| phase.name == "Services change")
        .context("no changes")?;
    counts.add("overload: requests lost", total.lost.all() as f64);
    counts.add("overload: elements not as wanted", wrong as f64);
    let coalesced = changing.transactions <= made as f64;
    counts.add(
        "overload: no more transactions than changes",
        f64::from(u8::from(coalesced)),
    );

    let mut document = Document::new("faults-overload", "Overload");
    document.paragraph(&format!(
        "{} Services of one port without endpoints, beside two that clients use, on two nodes; {} \
         changes a second (other source ranges, another port, deleted and created; seed {}) for {} \
         s; then {conflicts} Services that want a port which another one has come and go. The \
         kube-proxies run at the lowest priority. {words}",
        number(amount.services as f64),
        amount.changes,
        amount.seed,
        amount.seconds,
    ));
    document.paragraph(&format!(
        "{} changes were made, {} a second. The first agent made {} transactions of them, {} changes \
         each. {:.1} s after the last one both kernels were as the API's objects ask for, and every \
         status listed both nodes. At the end {wrong} elements differ.",
        number(made as f64),
        number((made as f64 / time.as_secs_f64() * 10.0).round() / 10.0),
        number(changing.transactions),
        number(made as f64 / changing.transactions.max(1.0)),
        caught_up.as_secs_f64(),
    ));
    document.heading("Clients of the other Services");
    document.paragraph(&own_trouble(&all));
    let mut table = Table::new(&[
        "while",
        "sent",
        "lost",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "slowest ms",
        "seconds",
        "transactions",
    ]);
    for phase in &phases {
        let Some(all) = Tally::total(&phase.tallies) else {
            continue;
        };
        let times = all.times();
        let share = |share: f64| times.as_ref().map_or(f64::NAN, |it| it.percentile(share));
        let counts = [all.sent() as f64, all.lost.all() as f64];
        let rest = [phase.time.as_secs_f64().round(), phase.transactions];
        let figures = counts
            .into_iter()
            .chain([0.5, 0.9, 0.99, 1.0].map(share))
            .chain(rest);
        table.row(
            [phase.name.to_owned()]
                .into_iter()
                .chain(figures.map(number)),
        );
    }
    document.table(table);
    document.heading("Memory");
    memory.document(&mut document);
    lost(&mut document, &total);
    document.data(json!({
        "services": amount.services, "changes": made, "seconds": amount.seconds, "seed": amount.seed,
        "transactions": changing.transactions, "caught_up_s": caught_up.as_secs_f64(),
        "elements_wrong": wrong, "conflicts": conflicts, "sent": total.sent(), "lost": total.lost,
        "memory_mib": memory.data(),
    }));
    Ok(document)
}

/// Gives the kube-proxies what time others leave.
fn last_in_turn(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let proxy = cluster.unit(&format!("kube-proxy-{}", node.name));
        let pid = proxy.pid().context("a kube-proxy has ended")?.to_string();
        // All of its threads; what it starts inherits it.
        node.netns().check(&["renice", "-n", "19", "-g", &pid])?;
    }
    Ok(())
}

/// What clients saw for some time.
struct Phase {
    name: &'static str,
    time: Duration,
    tallies: Vec<Tally>,
    /// Of the first agent.
    transactions: f64,
}

struct Run<'a> {
    bed: &'a Bed,
    api: Api<Service>,
    agents: [Program; 2],
    amount: Amount,
}

impl Run<'_> {
    fn units(&self) -> Result<Vec<Program>> {
        let mut programs = self.agents.to_vec();
        for name in highwire::CONTROLLERS {
            programs.push(self.bed.cluster.controller(name)?);
        }
        Ok(programs)
    }

    /// Has clients ask while `work` goes on.
    async fn phase(&self, name: &'static str, work: impl AsyncFnOnce()) -> Result<Phase> {
        eprintln!("overload: {name}");
        let transactions = || self.agents[0].metric("highwire_agent_apply_seconds_count");
        let (before, start) = (transactions()?, Instant::now());
        let load = Load::start(&self.bed.client(), self.bed.streams(RATE)?);
        work().await;
        let time = start.elapsed();
        Ok(Phase {
            name,
            time,
            tallies: load.stop()?,
            transactions: transactions()? - before,
        })
    }

    async fn create(
        &self,
        prefix: &str,
        count: usize,
        port: impl Fn(usize) -> usize,
        ranges: &[&str],
    ) -> Result<()> {
        let mut creating = JoinSet::new();
        for index in 0..count {
            if creating.len() >= AT_ONCE {
                creating.join_next().await.context("no request")???;
            }
            let service = object(&format!("{prefix}{index}"), port(index), ranges);
            let (api, service) = (self.api.clone(), serde_json::from_value(service)?);
            creating.spawn(async move {
                let created = api.create(&PostParams::default(), &service).await;
                created.map(drop).context("create a Service")
            });
        }
        while let Some(created) = creating.join_next().await {
            created??;
        }
        Ok(())
    }

    /// Changes Services at the wanted rate; how many changes were made.
    async fn change(&self, time: Duration) -> Result<usize> {
        let mut tick = interval(Duration::from_secs(1) / self.amount.changes);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut random = Rng::with_seed(self.amount.seed);
        let (start, mut made, mut going) = (Instant::now(), 0, JoinSet::new());
        // Ports beyond those that the many have.
        let (mut spare, last) = (FIRST_PORT + self.amount.services, FIRST_PORT + PORTS);
        while start.elapsed() < time {
            tick.tick().await;
            if going.len() >= AT_ONCE * 4 {
                going.join_next().await.context("no request")??;
            }
            let name = format!("{PREFIX}{}", random.usize(..self.amount.services));
            let api = self.api.clone();
            match random.u8(..3) {
                0 => {
                    let range = RANGES[random.usize(..2)];
                    let patch = json!({"spec": {"loadBalancerSourceRanges": [range]}});
                    going.spawn(async move { patched(&api, &name, patch).await });
                }
                1 => {
                    spare = if spare + 1 < last {
                        spare + 1
                    } else {
                        FIRST_PORT + self.amount.services
                    };
                    let patch = json!({"spec": {"ports": [{"port": spare, "targetPort": 8080}]}});
                    going.spawn(async move { patched(&api, &name, patch).await });
                }
                _ => {
                    let service = serde_json::from_value(object(&name, spare_of(&name), &[]))?;
                    made += 1;
                    going.spawn(async move {
                        let deleted = api.delete(&name, &DeleteParams::default()).await;
                        // Two such changes of one Service may meet.
                        let created = api.create(&PostParams::default(), &service).await;
                        deleted.is_ok() && created.is_ok()
                    });
                }
            }
            made += 1;
        }
        let mut failed = 0;
        while let Some(done) = going.join_next().await {
            failed += usize::from(!done?);
        }
        eprintln!("overload: {made} changes, of the last ones {failed} failed");
        Ok(made)
    }

    /// Services that want the ports of others come, are refused, and go.
    async fn contend(&self, count: usize) -> Result<()> {
        let conflicts = "highwire_agent_conflicts{reason=\"HeldByService\"}";
        let held = async |wanted: f64| {
            try_wait_for(&format!("{wanted} conflicts"), LIMIT, || async {
                for agent in &self.agents {
                    // Without any there is no such series.
                    let found = agent.metric(conflicts).unwrap_or(0.0);
                    ensure!(found == wanted, "{found}");
                }
                Ok(())
            })
            .await
        };
        let before = self.agents[0].metric(conflicts).unwrap_or(0.0);
        let taken: Vec<usize> = self.ports().await?;
        self.create(CONTENDER, count, |index| taken[index % taken.len()], &[])
            .await?;
        held(before + count as f64).await?;
        for index in 0..count {
            let name = format!("{CONTENDER}{index}");
            self.api.delete(&name, &DeleteParams::default()).await?;
        }
        held(before).await
    }

    /// The ports that the many have now.
    async fn ports(&self) -> Result<Vec<usize>> {
        let mut ports = Vec::new();
        for service in self.api.list(&ListParams::default()).await? {
            let name = service.metadata.name.as_deref().unwrap_or_default();
            let spec = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
            if name.starts_with(PREFIX) {
                ports.extend(spec.into_iter().flatten().map(|port| port.port as usize));
            }
        }
        Ok(ports)
    }

    /// Waits until both kernels hold what the objects ask for, and every status lists the nodes.
    async fn settled(&self) -> Result<()> {
        try_wait_for("the last state", LIMIT, || async {
            let differences = self.differences().await?;
            ensure!(differences == 0, "{differences} elements differ");
            let list = self.api.list(&ListParams::default()).await?;
            let behind = list.iter().filter(|service| addresses(service) < 2).count();
            ensure!(behind == 0, "{behind} Services are not listed everywhere");
            Ok(())
        })
        .await
    }

    /// How many elements of both kernels are not as the objects ask for.
    async fn differences(&self) -> Result<usize> {
        let namespace = self.bed.scope.namespace();
        let wanted = Held::wanted(&self.bed.cluster, namespace, PREFIX).await?;
        let ports = |port| (FIRST_PORT..FIRST_PORT + PORTS).contains(&usize::from(port));
        let mut differences = 0;
        for agent in &self.agents {
            let listed = list(agent.netns())?.context("there is no table")?;
            differences += Held::of(&listed, ports)?.differences(&wanted);
        }
        Ok(differences)
    }
}

/// The port that a Service begins with.
fn spare_of(name: &str) -> usize {
    let index = name.strip_prefix(PREFIX).and_then(|it| it.parse().ok());
    FIRST_PORT + index.unwrap_or(0)
}

fn addresses(service: &Service) -> usize {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    balancer
        .and_then(|it| it.ingress.as_ref())
        .map_or(0, Vec::len)
}

/// Without a selector, so that nobody has to make EndpointSlices.
fn object(name: &str, port: usize, ranges: &[&str]) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
            "loadBalancerSourceRanges": ranges,
            "ports": [{"port": port, "targetPort": 8080}],
        },
    })
}

/// Whether it was there to be changed.
async fn patched(api: &Api<Service>, name: &str, patch: Value) -> bool {
    let patched = api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    patched.is_ok()
}
