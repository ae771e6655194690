//! Measures Highwire on a test cluster; `hack/bench` runs it.
//!
//! Each folder but `output/` is a part: it measures, and returns a document and counts. What
//! depends on the machine is measured beside something that it can be compared with, in the
//! same run.

mod control_path;
mod data_path;
mod endpoints;
mod faults;
mod footprint;
mod frozen;
mod load;
mod output;
mod proc;
mod scale;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use highwire_e2e::{Cluster, checkout};

use faults::{Amount, Fault};
use output::counts::{Counts, Expected};
use output::document::{Document, Head};
use scale::Size;

/// Measures parts of Highwire on the cluster that HIGHWIRE_CLUSTER names.
#[derive(Parser)]
#[command(name = "highwire-bench")]
struct Cli {
    /// Measure little, write no documents, and compare counts with the expected ones.
    #[arg(long)]
    quick: bool,
    /// With --quick: write the counts down as the expected ones.
    #[arg(long, requires = "quick")]
    update: bool,
    /// The command that stands in the documents.
    #[arg(long, default_value = "highwire-bench")]
    command: String,
    /// Folder for the documents; docs/benchmarks of the checkout if left out.
    #[arg(long)]
    documents: Option<PathBuf>,
    /// How many simulated nodes and Services, for scale.
    #[arg(long, value_name = "NODESxSERVICES", default_value = "100x1000")]
    size: Size,
    #[command(flatten)]
    amount: Amount,
    /// What to measure.
    #[arg(required = true)]
    parts: Vec<Part>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// Requests, connections and bytes through a node.
    DataPath,
    /// From a change in the API to the kernel and the status.
    ControlPath,
    /// Whether a Service answers before it is advertised.
    FirstByte,
    /// Many nodes and many Services.
    Scale,
    /// Pods, containers and memory, beside one DaemonSet per Service. On nodes with kubelets.
    Footprint,
    /// Memory, CPU and elements of an agent without kube-proxy, by its endpoints.
    Endpoints,
    /// Requests lost while agents and controllers are replaced.
    Loss,
    /// From an agent's death until its node is out of every ingress.
    Failover,
    /// From the loss of the table until it is back.
    Repair,
    /// Agents killed in the middle of a change.
    Kills,
    /// Many Services, and many changes of them.
    Overload,
}

/// How thoroughly to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// As the documents need it.
    Full,
    /// A few seconds: whether it works, and counts.
    Quick,
}

impl Part {
    /// Measures it. The document counts after a full run only.
    async fn measure(
        self,
        cluster: &Cluster,
        effort: Effort,
        cli: &Cli,
        folder: &Path,
        counts: &mut Counts,
    ) -> Result<Document> {
        match self {
            Self::DataPath => data_path::measure(cluster, effort, counts).await,
            Self::ControlPath => control_path::measure(cluster, effort, counts).await,
            Self::FirstByte => control_path::first_byte(cluster).await,
            Self::Scale => scale::measure(cluster, effort, cli.size, folder).await,
            Self::Footprint => footprint::measure(cluster).await,
            Self::Endpoints => endpoints::measure(cluster, effort, counts).await,
            Self::Loss => {
                Fault::Loss
                    .measure(cluster, effort, cli.amount, counts)
                    .await
            }
            Self::Failover => {
                Fault::Failover
                    .measure(cluster, effort, cli.amount, counts)
                    .await
            }
            Self::Repair => {
                Fault::Repair
                    .measure(cluster, effort, cli.amount, counts)
                    .await
            }
            Self::Kills => {
                Fault::Kills
                    .measure(cluster, effort, cli.amount, counts)
                    .await
            }
            Self::Overload => {
                Fault::Overload
                    .measure(cluster, effort, cli.amount, counts)
                    .await
            }
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hack/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let effort = if cli.quick {
        Effort::Quick
    } else {
        Effort::Full
    };
    let cluster = Cluster::attach().await?;
    let folder = cli
        .documents
        .clone()
        .unwrap_or_else(|| checkout().join("docs/benchmarks"));
    let head = Head::read(&cluster, cli.command.clone()).await?;
    let mut counts = Counts::default();
    for part in &cli.parts {
        let document = part
            .measure(&cluster, effort, &cli, &folder, &mut counts)
            .await?;
        if effort == Effort::Full {
            println!("{}", document.text(&head));
            document.write(&head, &folder)?;
        }
    }
    if effort == Effort::Quick {
        Expected::file().settle(&counts, cli.update)?;
    }
    Ok(())
}
