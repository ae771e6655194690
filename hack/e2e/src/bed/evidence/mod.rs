//! What a cluster can say about a test that failed there.

use crate::highwire::installed;
use crate::lab::machine::Machine;
use crate::lab::netns::Netns;
use crate::lab::state::State;
use crate::lab::test_run::TestRun;
use crate::lab::unit::{self, Unit};

/// Of each log.
const LOG_LINES: usize = 15;
/// Of each node's table.
const TABLE_LINES: usize = 150;

/// What of a cluster is printed, by the beginning of its name. That of a box tells what its
/// updater was asked, too.
const TOLD: [&str; 4] = ["agent-", "controller-", "box-", "reader-"];

/// Prints the last lines of the agents', controllers', boxes' and readers' logs, of all their
/// containers where kubelets run them, and of each node that has one Highwire's table and the
/// conntrack entries of the ports that the test was given.
pub fn print(run: &TestRun) {
    for state in run.states() {
        println!("\n=== cluster {} when the test failed ===", state.name());
        for unit in Unit::list(state) {
            if TOLD.iter().any(|prefix| unit.name().starts_with(prefix)) {
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

fn print_node(node: &Netns, run: &TestRun) {
    let Ok(table) = node.check(&["nft", "list", "table", "inet", "highwire"]) else {
        return;
    };
    println!("--- {}: nft list table inet highwire ---", node.name());
    let lines: Vec<&str> = table.lines().collect();
    for line in lines.iter().take(TABLE_LINES) {
        println!("{line}");
    }
    if lines.len() > TABLE_LINES {
        println!("… and {} more lines", lines.len() - TABLE_LINES);
    }
    println!(
        "--- {}: conntrack entries of ports {:?} ---",
        node.name(),
        run.ports()
    );
    let entries = ["ipv4", "ipv6"].map(|family| node.check(&["conntrack", "-L", "-f", family]));
    for entry in entries.iter().flatten().flat_map(|listed| listed.lines()) {
        let mut ports = run.ports().iter().map(|port| format!("dport={port} "));
        if ports.any(|port| entry.contains(&port)) {
            println!("{entry}");
        }
    }
}
