//! The document.

use anyhow::{Context as _, Result};
use highwire_e2e::Program;

use super::changes::Moved;
use super::churn::Churn;
use super::created::Created;
use super::start::Start;
use crate::output::document::Document;
use crate::output::plot::{Axis, Plot};
use crate::output::stats::Sample;
use crate::output::table::{Table, number};
use crate::proc::Memory;

/// What was measured.
#[derive(Default)]
pub(crate) struct Report {
    /// At each number of ports.
    pub(crate) sizes: Vec<At>,
    /// Memory, in the order in which it was read.
    pub(crate) resident: Vec<Resident>,
    /// A steady stream of changes.
    pub(crate) churn: Option<Churn>,
    /// Endpoints that change.
    pub(crate) moved: Option<Moved>,
    /// Milliseconds until a lost node is out of the ingress.
    pub(crate) lost: Option<Sample>,
}

/// What was measured while so many ports were there.
pub(crate) struct At {
    pub(crate) ports: usize,
    /// Services created one after the other.
    pub(crate) created: Created,
    /// CPU in percent of a core while nothing changed, of the agent and of kube-proxy.
    pub(crate) idle: [f64; 2],
    /// A start with the table there, and without it.
    pub(crate) warm: Start,
    pub(crate) cold: Start,
    /// A start of kube-proxy.
    pub(crate) proxy: Start,
}

/// An agent's memory in MiB and its connections to the API server.
pub(crate) struct Resident {
    pub(crate) what: String,
    pub(crate) memory: f64,
    pub(crate) connections: usize,
}

type Pick = fn(&Created) -> &Sample;

/// What is measured of a Service that is created.
const ROWS: [(&str, Pick); 6] = [
    ("port in the kernel, kube-proxies stopped", |created| {
        &created.kernel_alone
    }),
    ("port in the kernel", |created| &created.kernel),
    ("first byte", |created| &created.answered),
    ("first byte at the NodePort", |created| &created.node_port),
    ("ingress", |created| &created.ingress),
    ("first byte − ingress", |created| &created.after_ingress),
];

fn explained(services: &str) -> String {
    format!(
        "Milliseconds from the request that creates it until it is so on both nodes, {services} \
         one after the other. That the port is in the kernel is found by asking the \
         kernel every 0.5 ms; that it answers, by connecting every 2 ms; the ingress, by reading \
         the Service every 2 ms. The NodePort's answer is kube-proxy's work alone. *First byte \
         − ingress* is below 0 for a Service that answered on every node before it was listed."
    )
}

fn figures(sample: &Sample) -> [String; 3] {
    [sample.median(), sample.percentile(0.99), sample.max()].map(number)
}

/// The document of what is advertised when.
pub(crate) fn first_byte(created: &Created, mode: &str, sync: &str) -> Document {
    let title = format!("First byte and ingress, kube-proxy in {mode} mode");
    let mut document = Document::new(&format!("first-byte-{mode}"), &title);
    document.paragraph(&format!(
        "Release builds. Two nodes serve; kube-proxy's `minSyncPeriod` is {sync}. {}",
        explained(&format!("{} Services", created.kernel.count()))
    ));
    let mut table = Table::new(&["", "p50", "p99", "max"]);
    for (name, pick) in ROWS {
        table.row([name.to_owned()].into_iter().chain(figures(pick(created))));
    }
    document.table(table);
    document
}

impl Resident {
    /// Reads it of an agent that runs.
    pub(crate) fn read(what: &str, agent: &Program) -> Result<Self> {
        let pid = agent.unit().pid().context("the agent has ended")?;
        Ok(Self {
            what: what.to_owned(),
            memory: Memory::of(pid)?.resident,
            connections: agent.connections()?,
        })
    }
}

impl Report {
    /// The document for a mode of kube-proxy and its `minSyncPeriod`.
    pub(crate) fn document(&self, mode: &str, sync: &str) -> Document {
        let title = format!("Control path, kube-proxy in {mode} mode");
        let mut document = Document::new(&format!("control-path-{mode}"), &title);
        document.paragraph(&format!(
            "Release builds. Two nodes serve; the agent's figures are those of n1. kube-proxy's \
             `minSyncPeriod` is {sync} (its default is 1 s). The ports that are there belong to \
             Services of ten TCP ports, each with two endpoints."
        ));
        self.created(&mut document);
        self.costs(&mut document);
        self.starts(&mut document);
        self.loads(&mut document);
        self.memory(&mut document);
        self.changes(&mut document);
        document
    }

    fn created(&self, document: &mut Document) {
        document.heading("A Service is created");
        let count = |pick: Pick| {
            let counts = self.sizes.iter().map(|at| pick(&at.created).count());
            counts.map(|count| count.to_string()).collect::<Vec<_>>()
        };
        document.paragraph(&explained(&format!(
            "{} Services, and {} others while the kube-proxies were stopped,",
            count(|created| &created.kernel).join(", "),
            count(|created| &created.kernel_alone).join(", "),
        )));
        let mut table = Table::new(&["ports there", "", "p50", "p99", "max"]);
        let mut plot = Plot::new(
            "Service created → …, p99",
            Axis::logarithmic("ports there"),
            Axis::linear("ms"),
        );
        for at in &self.sizes {
            for (name, pick) in ROWS {
                let cells = [number(at.ports as f64), name.to_owned()];
                table.row(cells.into_iter().chain(figures(pick(&at.created))));
            }
        }
        for (name, pick) in &ROWS[..5] {
            let point = |at: &At| (at.ports as f64, pick(&at.created).percentile(0.99));
            plot.line(name, self.sizes.iter().map(point).collect());
        }
        document.table(table);
        document.plot("created", plot);
    }

    fn costs(&self, document: &mut Document) {
        document.heading("What that costs the agent");
        document.paragraph(
            "Per Service that is created, listed and deleted, on average over the same Services. \
             CPU is the agent's and that of programs it ran.",
        );
        let mut table = Table::new(&[
            "ports there",
            "transactions",
            "elements",
            "bytes",
            "ms per transaction",
            "ms CPU",
        ]);
        for at in &self.sizes {
            let cost = &at.created.cost;
            let figures = [
                at.ports as f64,
                cost.transactions,
                cost.elements,
                cost.bytes,
                cost.transaction,
                cost.cpu,
            ];
            table.row(figures.map(number));
        }
        document.table(table);
    }

    fn starts(&self, document: &mut Document) {
        document.heading("Starts");
        document.paragraph(
            "The process is killed and started again. An agent has started when it is ready and \
             serves all Services, kube-proxy when its first sync of every family is over.",
        );
        let mut table = Table::new(&["", "ports there", "ms", "ms CPU", "most memory, MiB"]);
        for at in &self.sizes {
            for (name, start) in [
                ("agent, its table there", &at.warm),
                ("agent, without its table", &at.cold),
                ("kube-proxy", &at.proxy),
            ] {
                let figures = [at.ports as f64, start.time, start.cpu, start.memory];
                table.row([name.to_owned()].into_iter().chain(figures.map(number)));
            }
        }
        document.table(table);
    }

    fn loads(&self, document: &mut Document) {
        document.heading("CPU");
        document.paragraph("In percent of one core, with all that the process ran.");
        let mut table = Table::new(&["", "ports there", "agent", "kube-proxy"]);
        for at in &self.sizes {
            let figures = [at.ports as f64, at.idle[0], at.idle[1]];
            let name = "nothing changes".to_owned();
            table.row([name].into_iter().chain(figures.map(number)));
        }
        if let (Some(churn), Some(at)) = (&self.churn, self.sizes.last()) {
            let name = format!("{:.0} Services a second come or go", churn.rate);
            let figures = churn.load.iter().copied();
            let figures = [at.ports as f64].into_iter().chain(figures).map(number);
            table.row([name].into_iter().chain(figures));
        }
        document.table(table);
    }

    fn memory(&self, document: &mut Document) {
        document.heading("Memory");
        document.paragraph("The agent's resident memory, in the order in which it was read.");
        let mut table = Table::new(&["", "MiB", "connections to the API server"]);
        for resident in &self.resident {
            let figures = [number(resident.memory), resident.connections.to_string()];
            table.row([resident.what.clone()].into_iter().chain(figures));
        }
        document.table(table);
    }

    fn changes(&self, document: &mut Document) {
        document.heading("What changes under a Service");
        let mut table = Table::new(&["ms", "p50", "max", "rounds"]);
        let mut row = |name: &str, sample: &Sample| {
            let rounds = sample.count().to_string();
            let figures = [number(sample.median()), number(sample.max()), rounds];
            table.row([name.to_owned()].into_iter().chain(figures));
        };
        if let Some(moved) = &self.moved {
            row("endpoint replaced → new connections reach it", &moved.port);
            row("the same at the NodePort", &moved.node_port);
            row(
                "the same for a UDP client that goes on sending",
                &moved.flow,
            );
        }
        if let Some(lost) = &self.lost {
            row("agent killed → node out of the ingress", lost);
        }
        document.table(table);
    }
}
