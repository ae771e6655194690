//! What a cluster can say about a test that failed there. It is short: records of CI are cut.

mod connections;
mod objects;
mod table;

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::handle;
use crate::highwire::installed;
use crate::lab::machine::Machine;
use crate::lab::netns::Netns;
use crate::lab::state::State;
use crate::lab::test_run::TestRun;
use crate::lab::unit::{self, Unit};

/// Of each log.
const LOG_LINES: usize = 15;
/// How long the API server may take to say what it has.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What of a cluster is printed, by the beginning of its name. That of a box says what its
/// updater was asked, too.
const SHOWN: [&str; 4] = ["agent-", "controller-", "box-", "reader-"];

/// Prints what the API server has of the test's own; the last lines of the agents',
/// controllers', boxes' and readers' logs, of all their containers where kubelets run them; and
/// of each node that has one what is in Highwire's table, the newest conntrack entries of the
/// ports that the test was given, and how many packets conntrack dropped.
pub fn print(run: &TestRun) {
    for state in run.states() {
        println!("\n=== cluster {} when the test failed ===", state.name());
        for namespace in run.namespaces(state) {
            println!("--- {}: namespace {namespace} ---", state.name());
            match objects_of(state, namespace) {
                Ok(lines) => print_lines(&lines),
                Err(error) => println!("cannot be read: {error:#}"),
            }
        }
        for unit in Unit::list(state) {
            if SHOWN.iter().any(|prefix| unit.name().starts_with(prefix)) {
                let ended = if unit.is_running() {
                    ""
                } else {
                    " (has ended)"
                };
                println!("{}{ended}", unit.tail(LOG_LINES));
            }
        }
        for node in nodes(state) {
            print_node(&node, run);
            for log in installed::logs(&Machine::of(&node)) {
                println!("{}", unit::tail(&log, LOG_LINES));
            }
        }
    }
}

/// Prints how to use and remove what was kept.
pub fn print_remedy(run: &TestRun) {
    for state in run.states() {
        let name = state.name();
        println!(
            "\nKept: cluster {name}.\n\
             hack/cluster --name {name} kubectl get svc,lbn,pods --all-namespaces\n\
             hack/cluster --name {name} exec n1 -- nft list table inet highwire\n\
             hack/cluster --name {name} logs agent-n1\n\
             hack/cluster --name {name} down          # when you are done"
        );
    }
}

/// The nodes' namespaces: n1, n2, …
fn nodes(state: &State) -> impl Iterator<Item = Netns> {
    let nodes = (1..).map(|index| Netns::of(state, format!("n{index}")));
    nodes.take_while(Netns::exists)
}

/// Blocks; no runtime may run on this thread.
fn objects_of(state: &State, namespace: &str) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let lines = async { objects::lines(&handle::client(state).await?, namespace).await };
        tokio::time::timeout(ANSWER_LIMIT, lines)
            .await
            .context("the API server does not answer")?
    })
}

fn print_node(node: &Netns, run: &TestRun) {
    let Ok(table) = node.check(&["nft", "list", "table", "inet", "highwire"]) else {
        return;
    };
    println!("--- {}: what is in table inet highwire ---", node.name());
    print_lines(&table::summary(&table));
    let ports: Vec<u16> = run.ports().iter().copied().collect();
    println!(
        "--- {}: conntrack entries of ports {ports:?} ---",
        node.name()
    );
    let entries = ["ipv4", "ipv6"].map(|family| node.check(&["conntrack", "-L", "-f", family]));
    let entries = entries.iter().flatten().flat_map(|listed| listed.lines());
    print_lines(&connections::newest(entries, &ports));
    if let Ok(statistics) = node.check(&["cat", "/proc/net/stat/nf_conntrack"]) {
        println!(
            "since the cluster's start: {}",
            connections::trouble(&statistics)
        );
    }
}

/// By `println!`, which the harness of tests captures.
fn print_lines(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}
