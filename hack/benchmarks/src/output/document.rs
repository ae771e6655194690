//! One document a part, in Markdown, with its charts beside it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use highwire_e2e::{Cluster, checkout};
use serde_json::Value;

use crate::output::plot::Plot;
use crate::output::table::Table;

/// Where, when and on what was measured.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    lines: Table,
}

impl Head {
    /// Asks the machine and the cluster.
    pub(crate) async fn read(cluster: &Cluster, command: String) -> Result<Self> {
        let kubernetes = cluster.client().apiserver_version().await?.git_version;
        let processors = std::thread::available_parallelism()?.to_string();
        let commit = commit()?;
        let mut lines = Table::new(&["measured", ""]);
        lines.row(["date", &jiff::Zoned::now().date().to_string()]);
        lines.row(["command", &format!("`{command}`")]);
        lines.row(["Highwire", &commit]);
        lines.row(["kernel", &output(&["uname", "-srm"])?]);
        lines.row(["CPUs", &format!("{processors} × {}", processor()?)]);
        lines.row(["nft", &output(&["nft", "--version"])?]);
        lines.row(["Kubernetes", &kubernetes]);
        lines.row(["kube-proxy", cluster.config().proxy_modes.as_str()]);
        lines.row(["nodes", &cluster.nodes().len().to_string()]);
        Ok(Self { lines })
    }
}

/// What a part found out.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    stem: String,
    title: String,
    blocks: Vec<Block>,
    data: Option<Value>,
}

#[derive(Clone, Debug)]
enum Block {
    Heading(String),
    Text(String),
    Table(Table),
    Plot { file: String, plot: Plot },
}

impl Document {
    /// An empty document, to be `<stem>.md`.
    pub(crate) fn new(stem: &str, title: &str) -> Self {
        Self {
            stem: stem.to_owned(),
            title: title.to_owned(),
            blocks: Vec::new(),
            data: None,
        }
    }

    /// Adds a heading.
    pub(crate) fn heading(&mut self, text: &str) {
        self.blocks.push(Block::Heading(text.to_owned()));
    }

    /// Adds a paragraph.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.blocks.push(Block::Text(text.to_owned()));
    }

    /// Adds a table.
    pub(crate) fn table(&mut self, table: Table) {
        self.blocks.push(Block::Table(table));
    }

    /// Adds a chart, to be `<stem>-<name>.svg`.
    pub(crate) fn plot(&mut self, name: &str, plot: Plot) {
        let file = format!("{}-{name}.svg", self.stem);
        self.blocks.push(Block::Plot { file, plot });
    }

    /// The same figures for programs, to be `<stem>.json`.
    pub(crate) fn data(&mut self, data: Value) {
        self.data = Some(data);
    }

    /// The Markdown text.
    pub(crate) fn text(&self, head: &Head) -> String {
        let mut text = format!("# {}\n\n{}", self.title, head.lines);
        for block in &self.blocks {
            let written = match block {
                Block::Heading(heading) => writeln!(text, "\n## {heading}"),
                Block::Text(paragraph) => writeln!(text, "\n{paragraph}"),
                Block::Table(table) => write!(text, "\n{table}"),
                Block::Plot { file, plot } => writeln!(text, "\n![{}]({file})", plot.title()),
            };
            // Writing to a String does not fail.
            written.ok();
        }
        text
    }

    /// Writes it and its charts into the folder.
    pub(crate) fn write(&self, head: &Head, folder: &Path) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        for block in &self.blocks {
            if let Block::Plot { file, plot } = block {
                write(file, plot.svg()?)?;
            }
        }
        if let Some(data) = &self.data {
            let text = serde_json::to_string_pretty(data)? + "\n";
            write(&format!("{}.json", self.stem), text)?;
        }
        write(&format!("{}.md", self.stem), self.text(head))
    }
}

/// The commit that was measured. Documents that were written meanwhile do not change it.
fn commit() -> Result<String> {
    let folder = checkout().display().to_string();
    let git = |arguments: &[&str]| {
        let begin = ["git", "-C", folder.as_str()];
        output(&[&begin[..], arguments].concat())
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!docs",
    ])?;
    Ok(if changed.is_empty() {
        commit
    } else {
        format!("{commit} and changes")
    })
}

/// What the machine's processors call themselves.
fn processor() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(": "));
    Ok(name.map_or("unknown", |(_, name)| name).to_owned())
}

fn output(argv: &[&str]) -> Result<String> {
    let run = Command::new(argv[0]).args(&argv[1..]).output();
    let output = run.with_context(|| format!("run {argv:?}"))?;
    ensure!(
        output.status.success(),
        "{argv:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
