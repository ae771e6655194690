//! Histories of a cluster, random or written down: `hack/soak` runs it on a cluster of
//! its own.

mod api_fault;
mod bed;
mod generate;
mod history;
mod quiet;
mod service;
mod shrink;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use highwire_e2e::Cluster;
use highwire_e2e::model::Violations;

use bed::Bed;
use history::{History, Operation};
use quiet::{Checked, Quiet};

/// An operation that takes longer says so.
const LONG: Duration = Duration::from_secs(1);

/// Does histories to the cluster that HIGHWIRE_CLUSTER names, and checks it.
#[derive(Parser)]
#[command(name = "highwire-soak")]
struct Cli {
    /// How long to go on in all, 5 if left out; with --replay, with random histories after
    /// the others. The last one ends in its next quiet moment.
    #[arg(long)]
    minutes: Option<u64>,
    /// The seed of the first history; each one after it has the next number. The time if left
    /// out.
    #[arg(long)]
    seed: Option<u64>,
    /// How many operations a history has.
    #[arg(long, default_value_t = 60)]
    operations: usize,
    /// Run only the first history.
    #[arg(long)]
    once: bool,
    /// Run these histories; random ones after them only with --minutes.
    #[arg(long, num_args = 1.., conflicts_with = "once")]
    replay: Vec<PathBuf>,
    /// For how many minutes to shorten a history that fails.
    #[arg(long, default_value_t = 10)]
    shrink_minutes: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hack/soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let began = Instant::now();
    let cluster = Cluster::attach().await?;
    let mut soak = Soak::new(&cluster, Duration::from_secs(cli.shrink_minutes * 60)).await?;
    for path in &cli.replay {
        let history = History::read(path)?;
        println!("{}: {}", path.display(), history.about);
        soak.hold(&history, None).await?;
    }
    if cli.replay.is_empty() || cli.minutes.is_some() {
        random(&cli, &mut soak, began).await?;
    }
    println!(
        "{} histories, {} operations, {} checks of everything, {} while the API server failed \
         somebody, {} requests or events that went wrong; {} s: nothing wrong",
        soak.done.histories,
        soak.done.operations,
        soak.done.checks,
        soak.done.partial_checks,
        soak.bed.networks().faults(),
        began.elapsed().as_secs()
    );
    Ok(())
}

/// Random histories until the time is over.
async fn random(cli: &Cli, soak: &mut Soak, began: Instant) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let first = cli.seed.unwrap_or(now.as_secs());
    let until = began + Duration::from_secs(cli.minutes.unwrap_or(5) * 60);
    for seed in first.. {
        let history = generate::history(seed, cli.operations);
        println!(
            "seed {seed}: --seed {seed} --operations {} --once",
            cli.operations
        );
        soak.hold(&history, (!cli.once).then_some(until)).await?;
        if cli.once || Instant::now() >= until {
            break;
        }
    }
    Ok(())
}

/// What was done.
#[derive(Default)]
struct Done {
    histories: usize,
    operations: usize,
    checks: usize,
    partial_checks: usize,
}

/// A bed, and what was done there.
struct Soak {
    cluster: Cluster,
    bed: Bed,
    done: Done,
    /// How long to shorten a history that fails.
    shrinking: Duration,
}

impl Soak {
    async fn new(cluster: &Cluster, shrinking: Duration) -> Result<Self> {
        Ok(Self {
            cluster: cluster.clone(),
            bed: Bed::new(cluster).await?,
            done: Done::default(),
            shrinking,
        })
    }

    /// Runs a history, or its beginning if that time comes first; if it fails, prints the
    /// shortest part that does.
    async fn hold(&mut self, history: &History, until: Option<Instant>) -> Result<()> {
        let Some((at, violations)) = self.replay(&history.operations, until).await? else {
            self.done.histories += 1;
            return Ok(());
        };
        println!(
            "\n{violations}\nafter {} of {} operations",
            at,
            history.operations.len()
        );
        let (failed, about) = (&history.operations[..at], &history.about);
        let deadline = Instant::now() + self.shrinking;
        println!(
            "shortening it for {} minutes at most",
            self.shrinking.as_secs() / 60
        );
        let fails = async |part: &[Operation]| {
            println!("  {} operations", part.len());
            Ok(self.replay(part, None).await?.is_some())
        };
        let operations = shrink::shortest(failed, deadline, fails).await?;
        let shortest = History {
            about: format!("shortened from {about}"),
            operations,
        };
        let json = shortest.to_json()?;
        println!(
            "\nWrite this to hack/e2e/histories/NAME.json and run hack/soak --replay it:\n\n{json}"
        );
        bail!("{about}: {violations}")
    }

    /// Runs operations on a clean cluster; where it was wrong, and how.
    async fn replay(
        &mut self,
        operations: &[Operation],
        until: Option<Instant>,
    ) -> Result<Option<(usize, Violations)>> {
        let began = Instant::now();
        self.bed.clean().await.context("clean the cluster")?;
        let mut quiet = Quiet::new(&self.cluster);
        if let Err(violations) = quiet.check(self.bed.networks()).await {
            bail!("the cluster is not clean:\n{violations}");
        }
        println!("    clean, {} ms", began.elapsed().as_millis());
        self.bed.note_version().await?;
        for (index, operation) in operations.iter().enumerate() {
            println!("  {index}: {}", serde_json::to_string(operation)?);
            self.done.operations += 1;
            if *operation == Operation::Quiet {
                if let Err(violations) = self.check(&mut quiet).await? {
                    return Ok(Some((index + 1, violations)));
                }
                if until.is_some_and(|until| Instant::now() >= until) {
                    println!("    time is over");
                    break;
                }
                continue;
            }
            let began = Instant::now();
            let applied = self.bed.apply(operation).await;
            applied.with_context(|| format!("operation {index}, {operation:?}"))?;
            quiet.note(operation, self.bed.networks());
            if began.elapsed() >= LONG {
                println!("    took {} ms", began.elapsed().as_millis());
            }
        }
        if operations.iter().any(Operation::has_to_end)
            || operations.last() != Some(&Operation::Quiet)
        {
            self.bed.heal()?;
            let checked = self.check(&mut quiet).await?;
            return Ok(checked
                .err()
                .map(|violations| (operations.len(), violations)));
        }
        Ok(None)
    }

    async fn check(&mut self, quiet: &mut Quiet) -> Result<Result<(), Violations>> {
        let began = Instant::now();
        let outcome = quiet.check(self.bed.networks()).await;
        let took = began.elapsed().as_millis();
        let checked = match outcome {
            Err(violations) => return Ok(Err(violations)),
            Ok(checked) => checked,
        };
        match checked {
            Checked::Everything => {
                self.done.checks += 1;
                self.bed.note_version().await?;
                println!("    settled, {took} ms");
            }
            Checked::WhatWasRight => {
                self.done.partial_checks += 1;
                println!("    kept, {took} ms");
            }
            Checked::Nothing => println!("    not checked: not everybody can know"),
        }
        Ok(Ok(()))
    }
}
