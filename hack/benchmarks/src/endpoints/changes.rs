//! A steady stream of changes of endpoints.

use std::time::{Duration, Instant};

use anyhow::Result;
use highwire_e2e::Program;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::ENDPOINTS;
use super::slices::Slices;
use crate::control_path::Cpu;

/// What an agent has done so far, by its own counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) transactions: f64,
    pub(crate) elements: f64,
    pub(crate) bytes: f64,
    /// Seconds in the kernel or in nft.
    pub(crate) applying: f64,
    pub(crate) decisions: f64,
    /// Seconds.
    pub(crate) deciding: f64,
}

impl Done {
    /// Until now.
    pub(crate) fn by(agent: &Program) -> Result<Self> {
        let read = |series: &str| agent.metric(&format!("highwire_agent_{series}"));
        Ok(Self {
            transactions: read("apply_seconds_count")?,
            elements: read("elements_changed_total")?,
            bytes: read("apply_bytes_total")?,
            applying: read("apply_seconds_sum")?,
            decisions: read("decision_seconds_count")?,
            deciding: read("decision_seconds_sum")?,
        })
    }

    /// Since then.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            transactions: self.transactions - earlier.transactions,
            elements: self.elements - earlier.elements,
            bytes: self.bytes - earlier.bytes,
            applying: self.applying - earlier.applying,
            decisions: self.decisions - earlier.decisions,
            deciding: self.deciding - earlier.deciding,
        }
    }
}

/// Waits until the agent has carried out no transaction for `quiet`.
pub(crate) async fn calm(agent: &Program, quiet: Duration) -> Result<Done> {
    let mut last = Done::by(agent)?;
    loop {
        tokio::time::sleep(quiet).await;
        let now = Done::by(agent)?;
        if now.transactions == last.transactions {
            return Ok(now);
        }
        last = now;
    }
}

/// What a steady stream of changes of endpoints cost the agent.
pub(crate) struct Changes {
    /// How many there were.
    pub(crate) count: usize,
    /// In so many seconds.
    pub(crate) seconds: f64,
    /// The share of a core, in percent.
    pub(crate) load: f64,
    /// What it did for them.
    pub(crate) done: Done,
}

impl Changes {
    /// Takes an endpoint from one Service after the other, and then gives it back to each.
    pub(crate) async fn run(
        slices: &Slices,
        agent: &Program,
        rate: u32,
        time: Duration,
    ) -> Result<Self> {
        let mut tick = interval(Duration::from_secs(1) / rate);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (before, cpu) = (Done::by(agent)?, Cpu::of(agent.unit())?);
        let (start, mut count, mut going) = (Instant::now(), 0, JoinSet::new());
        while start.elapsed() < time {
            tick.tick().await;
            let (index, lap) = (count % slices.count(), count / slices.count());
            let slices = slices.clone();
            going.spawn(async move { slices.set(index, ENDPOINTS - 1 + lap % 2).await });
            count += 1;
        }
        while let Some(changed) = going.join_next().await {
            changed??;
        }
        let seconds = start.elapsed().as_secs_f64();
        let cpu = Cpu::of(agent.unit())?.since(cpu);
        let done = calm(agent, Duration::from_millis(500)).await?.since(before);
        Ok(Self {
            count,
            seconds,
            load: cpu / seconds * 100.0,
            done,
        })
    }
}
