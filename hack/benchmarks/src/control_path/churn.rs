//! Services that come and go steadily.

use std::time::{Duration, Instant};

use anyhow::Result;
use highwire_e2e::{Scope, Unit};
use tokio::time::{MissedTickBehavior, interval};

use super::process::Cpu;
use super::services;

/// What a steady stream of changes cost.
pub(crate) struct Churn {
    /// How many changes a second there were.
    pub(crate) rate: f64,
    /// The share of a core of each unit, in percent.
    pub(crate) load: Vec<f64>,
}

/// Creates and deletes Services, `rate` changes a second together.
pub(crate) async fn run(
    scope: &Scope,
    units: &[&Unit],
    rate: u32,
    time: Duration,
) -> Result<Churn> {
    let read = || {
        units
            .iter()
            .map(|unit| Cpu::of(unit))
            .collect::<Result<Vec<_>>>()
    };
    let mut tick = interval(Duration::from_secs(2) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (start, before) = (Instant::now(), read()?);
    let mut going = tokio::task::JoinSet::new();
    let mut index = 0_u32;
    while start.elapsed() < time {
        tick.tick().await;
        let (_, service) = services::create(scope, &format!("churn-{index}")).await?;
        going.spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            service.delete().await
        });
        index += 1;
    }
    while let Some(deleted) = going.join_next().await {
        deleted??;
    }
    let (elapsed, after) = (start.elapsed().as_secs_f64(), read()?);
    let load = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after.since(*before));
    Ok(Churn {
        rate: f64::from(index) * 2.0 / elapsed,
        load: load.map(|cpu| cpu / elapsed * 100.0).collect(),
    })
}
