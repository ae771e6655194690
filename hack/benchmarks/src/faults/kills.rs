//! Agents that are killed in the middle of something, and started again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use highwire_e2e::expect::LONG;
use highwire_e2e::lab::wait::try_wait_for;
use highwire_e2e::{Cluster, Program, Programs as _, ProxyMode, Svc, highwire};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::Amount;
use super::bed::{Bed, lost, own_trouble, table};
use super::machine::Watched;
use super::table::{Held, list};
use crate::load::{Load, Tally};
use crate::output::counts::Counts;
use crate::output::document::Document;
use crate::output::table::{Table, number};

const ROUNDS: usize = 200;
/// Services that come and go, and how many are there on average.
const PREFIX: &str = "churn-";
const THERE: usize = 24;
/// Changes that are made at once before a kill.
const BURST: usize = 6;
/// New connections a second meanwhile, to other Services.
const RATE: f64 = 100.0;
const RANGES: [&str; 2] = ["198.51.100.0/24", "203.0.113.0/24"];

/// When the kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The agent, up to 100 ms after Services were changed.
    Change,
    /// The agent, up to 600 ms after it was started.
    Start,
    /// The nft that an agent runs which was just started. The agent lives.
    Nft,
}

impl Moment {
    const ALL: [Self; 3] = [Self::Change, Self::Start, Self::Nft];

    fn name(self) -> &'static str {
        match self {
            Self::Change => "the agent, after a change of Services",
            Self::Start => "the agent, while it starts",
            Self::Nft => "the nft of an agent that starts",
        }
    }
}

/// What was counted of one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    times: usize,
    /// Ports that were open by half right after the kill.
    halves: usize,
    /// Elements that the table had not yet, or still had, right after the kill.
    owed: usize,
    /// Kills after which something was owed.
    behind: usize,
    /// Tables that were not as the Services want them once the agent was ready again.
    wrong: usize,
}

/// Kills the agent of the first node so many times.
pub(crate) async fn measure(
    cluster: &Cluster,
    amount: Amount,
    counts: &mut Counts,
) -> Result<Document> {
    let rounds = amount.rounds.unwrap_or(ROUNDS).max(Moment::ALL.len());
    let bed = Bed::new(cluster, "kills").await?;
    let watched = Watched::new(&bed.client())?;
    let mut churn = Churn::new(&bed, amount.seed)?;
    let load = Load::start(&bed.client(), bed.streams(RATE)?);
    let mut seen = [Seen::default(); Moment::ALL.len()];
    for round in 0..rounds {
        let which = round % Moment::ALL.len();
        let moment = Moment::ALL[which];
        let before = (seen[which].owed, seen[which].wrong);
        churn.round(moment, &mut seen[which]).await?;
        let (owed, wrong) = (seen[which].owed - before.0, seen[which].wrong - before.1);
        eprintln!("kills {round}: {moment:?}, {owed} elements owed, {wrong} wrong");
    }
    let tallies = load.stop()?;
    let words = watched.words()?;
    let differs = churn.differs_from_scratch().await?;
    let total = Tally::total(&tallies).context("no stream")?;
    for fault in &total.faults {
        eprintln!("lost: {fault}");
    }
    let sum = |pick: fn(&Seen) -> usize| seen.iter().map(pick).sum::<usize>() as f64;
    counts.add("kills: requests lost", total.lost.all() as f64);
    counts.add("kills: ports open by half", sum(|it| it.halves));
    counts.add("kills: tables that are not as wanted", sum(|it| it.wrong));
    counts.add("kills: differences to a table from scratch", differs as f64);

    let mut document = Document::new("faults-kills", "Killed in the middle of a change");
    document.paragraph(&format!(
        "On {} (kube-proxy in {} mode) something got SIGKILL {rounds} times, after a time between 50 \
         µs and the longest named, evenly by its logarithm (seed {}). Before each, {BURST} of about \
         {THERE} Services were created, deleted or given other source ranges at the same time. Right \
         after the kill the kernel's table was read: a port that is open and leads nowhere, or is \
         guarded and allows nobody, would be half a transaction. Then the agent was started again, \
         and when it was ready the table was compared with what the API's objects ask for, element \
         by element. At the end the table was deleted and built anew: {differs} differences to the \
         one that had been through all this. {words}",
        churn.agent.unit().name(), churn.mode, amount.seed,
    ));
    let mut rows = Table::new(&[
        "killed",
        "times",
        "ports open by half",
        "kills with elements owed",
        "elements owed",
        "wrong in the end",
    ]);
    for (moment, seen) in Moment::ALL.iter().zip(seen) {
        let figures = [seen.times, seen.halves, seen.behind, seen.owed, seen.wrong];
        let figures = figures.map(|count| number(count as f64));
        rows.row([moment.name().to_owned()].into_iter().chain(figures));
    }
    document.table(rows);
    document.heading("Clients of other Services meanwhile");
    document.paragraph(&own_trouble(&tallies));
    document.table(table(&tallies));
    lost(&mut document, &total);
    document.data(json!({
        "rounds": rounds, "seed": amount.seed, "sent": total.sent(), "lost": total.lost,
        "halves": sum(|it| it.halves), "owed": sum(|it| it.owed), "wrong": sum(|it| it.wrong),
        "differences_from_scratch": differs,
    }));
    Ok(document)
}

/// Services that come and go, and the agent that has to follow.
struct Churn<'a> {
    bed: &'a Bed,
    agent: Program,
    mode: &'static str,
    there: Vec<(Svc, u16, bool)>,
    all_ports: BTreeSet<u16>,
    /// Those that no Service has.
    ports: Vec<u16>,
    made: usize,
    random: Rng,
}

impl<'a> Churn<'a> {
    fn new(bed: &'a Bed, seed: u64) -> Result<Self> {
        let node = highwire::SERVING[0];
        let index = bed.cluster.node(node)?.index;
        let mode = bed.cluster.config().proxy_modes.on(index);
        let ports = (0..THERE * 2)
            .map(|_| bed.scope.free_port())
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            all_ports: ports.iter().copied().collect(),
            bed,
            agent: bed.cluster.agent(node)?,
            mode: mode.map_or("no", ProxyMode::as_str),
            there: Vec::new(),
            ports,
            made: 0,
            random: Rng::with_seed(seed),
        })
    }

    async fn round(&mut self, moment: Moment, seen: &mut Seen) -> Result<()> {
        seen.times += 1;
        match moment {
            Moment::Change => {
                self.change().await?;
                self.pause(Duration::from_millis(100)).await;
                self.agent.kill()?;
                self.look(seen).await?;
                self.agent.unit().start_again()?;
            }
            Moment::Start => {
                self.agent.kill()?;
                self.change().await?;
                self.agent.unit().start_again()?;
                self.pause(Duration::from_millis(600)).await;
                self.agent.kill()?;
                self.look(seen).await?;
                self.agent.unit().start_again()?;
            }
            Moment::Nft => {
                self.agent.kill()?;
                self.change().await?;
                self.agent.unit().start_again()?;
                self.kill_nft().await?;
            }
        }
        if self.agent.wait_ready(LONG * 2).await.is_err() && !self.agent.is_running() {
            // What its first nft says for good ends an agent, and a kubelet starts it again.
            ensure!(
                moment == Moment::Nft,
                "the agent has ended:\n{}",
                self.agent.unit().tail(20)
            );
            self.agent.unit().start_again()?;
            self.agent.wait_ready(LONG * 2).await?;
        }
        seen.wrong += usize::from(self.settled().await.is_err());
        Ok(())
    }

    /// Reads the table as the kill left it.
    async fn look(&self, seen: &mut Seen) -> Result<()> {
        let wanted = self.wanted().await?;
        let Some(held) = self.held()? else {
            seen.wrong += 1;
            return Ok(());
        };
        seen.halves += held.halves();
        let owed = held.differences(&wanted);
        seen.owed += owed;
        seen.behind += usize::from(owed > 0);
        Ok(())
    }

    async fn wanted(&self) -> Result<Held> {
        Held::wanted(&self.bed.cluster, self.bed.scope.namespace(), PREFIX).await
    }

    fn held(&self) -> Result<Option<Held>> {
        let ports = |port| self.all_ports.contains(&port);
        let listed = list(self.agent.netns())?;
        listed.map(|listed| Held::of(&listed, ports)).transpose()
    }

    /// Waits until the table is as the Services want it.
    async fn settled(&self) -> Result<()> {
        try_wait_for("the table to be as wanted", LONG, || async {
            let wanted = self.wanted().await?;
            let held = self.held()?.context("there is no table")?;
            ensure!(held == wanted, "{}", held.difference(&wanted));
            Ok(())
        })
        .await
        .inspect_err(|error| eprintln!("kills: {error}"))
    }

    /// How the table differs from one that the agent builds from nothing.
    async fn differs_from_scratch(&self) -> Result<usize> {
        let before = list(self.agent.netns())?.context("there is no table")?;
        self.agent.kill()?;
        let delete = ["nft", "delete", "table", "inet", "highwire"];
        self.agent.netns().check(&delete)?;
        self.agent.unit().start_again()?;
        self.agent.wait_ready(LONG).await?;
        self.settled().await?;
        let after = list(self.agent.netns())?.context("there is no table")?;
        let (old, new) = (
            before.elements.unwrap_or_default().0,
            after.elements.unwrap_or_default().0,
        );
        let elements = old
            .iter()
            .filter(|it| !new.contains_key(it.0) || new[it.0] != *it.1)
            .count();
        let more = new.keys().filter(|key| !old.contains_key(key)).count();
        Ok(elements + more + usize::from(before.structure != after.structure))
    }

    /// Creates, deletes and changes some Services at the same time.
    async fn change(&mut self) -> Result<()> {
        let mut going = tokio::task::JoinSet::new();
        for _ in 0..BURST {
            let grows = self.random.usize(0..THERE * 2) >= self.there.len();
            if grows {
                self.made += 1;
                let port = self.ports.pop().context("a port is free")?;
                let is_guarded = self.random.bool();
                let service = self.bed.scope.service(&format!("{PREFIX}{}", self.made));
                let service = service.load_balancer().select("app", "web").tcp(port, 8080);
                let service = service.spec("allocateLoadBalancerNodePorts", json!(false));
                let service = match is_guarded {
                    true => service.spec("loadBalancerSourceRanges", json!([RANGES[0]])),
                    false => service,
                };
                // Those that are there are known only once they are.
                going.spawn(async move { Ok(Some((service.create().await?, port, is_guarded))) });
                continue;
            }
            let index = self.random.usize(..self.there.len());
            if self.there[index].2 && self.random.bool() {
                let (service, range) =
                    (self.there[index].0.clone(), RANGES[self.random.usize(..2)]);
                let patch = json!({"spec": {"loadBalancerSourceRanges": [range]}});
                going.spawn(async move { service.patch(patch).await.map(|_| None) });
            } else {
                let (service, port, _) = self.there.swap_remove(index);
                // Not for the next one at once: whoever is deleted last would keep it.
                self.ports.insert(0, port);
                going.spawn(async move { service.delete().await.map(|()| None) });
            }
        }
        while let Some(done) = going.join_next().await {
            match done? {
                Ok(made) => self.there.extend(made),
                // It was deleted at the same time.
                Err(error) if format!("{error:#}").contains("not found") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// For a time between 50 µs and `most`, evenly by its logarithm.
    async fn pause(&mut self, most: Duration) {
        let least = 50e-6_f64;
        let seconds = least * (most.as_secs_f64() / least).powf(self.random.f64());
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    /// Kills one of the first runs of nft that the agent makes.
    async fn kill_nft(&mut self) -> Result<()> {
        let agent = self.agent.unit().pid().context("the agent has ended")?;
        let skipped = self.random.usize(..4);
        let (start, mut found) = (Instant::now(), Vec::new());
        while start.elapsed() < Duration::from_secs(3) && found.len() <= skipped {
            for pid in children(agent) {
                if !found.contains(&pid) {
                    found.push(pid);
                }
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        let Some(last) = found.last() else {
            return Ok(());
        };
        // It may have ended meanwhile.
        kill(Pid::from_raw(*last), Signal::SIGKILL).ok();
        Ok(())
    }
}

/// The children of a process (proc(5)).
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let texts = threads
        .flatten()
        .map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let texts: Vec<String> = texts.collect();
    let words = texts.iter().flat_map(|text| text.split_whitespace());
    words.filter_map(|word| word.parse().ok()).collect()
}
