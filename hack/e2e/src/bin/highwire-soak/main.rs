//! Histories of a cluster, random or written down: `hack/soak` runs it on a cluster of
//! its own.

mod bed;
mod generate;
mod history;
mod service;
mod shrink;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use highwire_e2e::Cluster;
use highwire_e2e::model::{Checker, Violations};

use bed::Bed;
use history::{History, Operation};

/// How long the cluster may take until nothing is wrong any more. Leases, and lists that would
/// become empty, are good for 30 s and 12 s after the last fault.
const SETTLE: Duration = Duration::from_secs(75);

/// After which what was waited for is printed.
const SLOW: Duration = Duration::from_secs(10);

/// Does histories to the cluster that HIGHWIRE_CLUSTER names, and checks it.
#[derive(Parser)]
#[command(name = "highwire-soak")]
struct Cli {
    /// How long to go on with random histories.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// The seed of the first history; each one after it has the next number. The time if left
    /// out.
    #[arg(long)]
    seed: Option<u64>,
    /// How many operations a history has. With --seed but without --minutes only that one runs.
    #[arg(long, default_value_t = 60)]
    operations: usize,
    /// Run only the first history.
    #[arg(long)]
    once: bool,
    /// Run these histories, and no random ones.
    #[arg(long, num_args = 1.., conflicts_with_all = ["seed", "once"])]
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
    let cluster = Cluster::attach().await?;
    let mut soak = Soak::new(&cluster).await?;
    let began = Instant::now();
    if !cli.replay.is_empty() {
        for path in &cli.replay {
            let history = History::read(path)?;
            println!("{}: {}", path.display(), history.about);
            soak.hold(&history, cli.shrink_minutes).await?;
        }
        return Ok(());
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let first = cli.seed.unwrap_or(now.as_secs());
    let limit = Duration::from_secs(cli.minutes * 60);
    let mut done = (0, 0);
    for seed in first.. {
        let history = generate::history(seed, cli.operations);
        println!(
            "seed {seed}: --seed {seed} --operations {} --once",
            cli.operations
        );
        soak.hold(&history, cli.shrink_minutes).await?;
        done = (done.0 + 1, done.1 + history.operations.len());
        if cli.once || began.elapsed() >= limit {
            break;
        }
    }
    let seconds = began.elapsed().as_secs();
    println!(
        "{} histories, {} operations, {} checks, {seconds} s: nothing wrong",
        done.0, done.1, soak.checks
    );
    Ok(())
}

/// A bed and its checker.
struct Soak {
    cluster: Cluster,
    bed: Bed,
    checks: usize,
}

impl Soak {
    async fn new(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            cluster: cluster.clone(),
            bed: Bed::new(cluster).await?,
            checks: 0,
        })
    }

    /// Runs a history; if it fails, prints the shortest part that does.
    async fn hold(&mut self, history: &History, shrink_minutes: u64) -> Result<()> {
        let Some((at, violations)) = self.replay(&history.operations).await? else {
            return Ok(());
        };
        println!(
            "\n{violations}\nafter {} of {} operations",
            at,
            history.operations.len()
        );
        let (failed, about) = (&history.operations[..at], &history.about);
        let deadline = Instant::now() + Duration::from_secs(shrink_minutes * 60);
        println!("shortening it for {shrink_minutes} minutes at most");
        let fails = async |part: &[Operation]| {
            println!("  {} operations", part.len());
            Ok(self.replay(part).await?.is_some())
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
    async fn replay(&mut self, operations: &[Operation]) -> Result<Option<(usize, Violations)>> {
        self.bed.clean().await.context("clean the cluster")?;
        let mut checker = Checker::new(&self.cluster);
        if let Err(violations) = checker.settled(SETTLE).await {
            bail!("the cluster is not clean:\n{violations}");
        }
        for (index, operation) in operations.iter().enumerate() {
            println!("  {index}: {}", serde_json::to_string(operation)?);
            if *operation == Operation::Quiet {
                if let Err(violations) = self.check(&mut checker).await {
                    return Ok(Some((index + 1, violations)));
                }
                continue;
            }
            let applied = self.bed.apply(operation).await;
            applied.with_context(|| format!("operation {index}, {operation:?}"))?;
        }
        self.bed.heal().await?;
        let checked = self.check(&mut checker).await;
        Ok(checked
            .err()
            .map(|violations| (operations.len(), violations)))
    }

    async fn check(&mut self, checker: &mut Checker) -> Result<(), Violations> {
        let began = Instant::now();
        let outcome = checker.settled(SETTLE).await;
        self.checks += 1;
        let took = began.elapsed();
        println!("    settled: {}, {} ms", outcome.is_ok(), took.as_millis());
        if outcome.is_ok() && took >= SLOW {
            print!("    slowly; at last:\n{}", checker.last_wrong());
        }
        outcome
    }
}
