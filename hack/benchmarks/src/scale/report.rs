//! The document: what was measured at each size, and how it grows.

use super::results::{Measured, Results};
use super::scenarios::{
    BURST, CHANGES, HALF_BACK, HALF_LOST, IDLE, KILLED, LOST, ONE, ONE_PORT, RESTARTED, STARTED,
};
use super::step::Step;
use crate::output::document::Document;
use crate::output::plot::{Axis, Plot};
use crate::output::table::{Table, number};

/// The number of Services and of nodes along which growth is shown.
const SERVICES: usize = 1000;
const NODES: usize = 100;

const SIMULATED: &str = "**Real**: kube-apiserver, etcd (without fsync), \
    kube-controller-manager (endpoints, garbage collection, node taints), two \
    highwire-controllers (release builds; one leads, one follows), all of `deploy/` with its \
    flow control and admission policy. The agents' own code decides, writes reports and renews \
    Leases, each agent with a token and a connection of its own.\n\n\
    **Simulated**: there are no nodes. Their objects are made through the API, with a heartbeat \
    of each Node's status every 5 minutes; kubelets' own Leases and kube-proxies are missing. \
    All agents are in one process and share one watch of the Services; their other watches \
    (own Node, own Pods, own report, Namespace) are left out. What they would receive is \
    counted and multiplied below. There is no kernel: what an agent has decided is in force at \
    once, its node has one address, and nothing listens there. An agent waits for its turn to \
    decide, since all share this machine's CPUs with the API server: so times until the last \
    agent has reported say little about a cluster, and times after that say what the controller \
    takes. Services have one port, 3 endpoints and no NodePorts (a cluster has 2,768).";

const MEMORY: &str = "The memory of the leading controller is the most it ever had, all \
    steps below included. CPU time is of the whole step.";

const AGENTS_START: &str = "Larger sizes the other way round: all Services are there when the \
    agents start, which takes a minute. All Services at once is more than this machine's two \
    processors can do for so many agents, since each of them would report many times.";

const WRITES: &str = "All writes that the API server carried out while all Services were \
    created at once, by verb and resource. Creating Services is the test's own; EndpointSlices \
    are kube-controller-manager's. `loadbalancernodes/status` and `leases` are the agents', \
    `services/status` and `events` the controller's. Per Service, and per node where that is \
    what they grow with.";

const WATCHED: &str = "What each agent's watch of the Services brings for a new Service: its \
    creation and each write of its status. A kube-proxy on the node gets the same. The last \
    column is measured, with 100 nodes and more: 100 more watches are opened, each on a \
    connection of its own, and Services are changed with and without them.";

const QUIET: &str = "Nothing is changed for 16 s. Writes of the test's own (heartbeats of \
    Nodes) and of the API server and kube-controller-manager are not shown.";

const TROUBLE: &str = "Times in seconds. A lost node stops renewing its Lease, which is good \
    for 12 s. When half of the nodes are lost, nothing is to happen until Kubernetes itself says \
    that they are not ready; here that is done 15 s after the loss, in place of 50 s, and the \
    time counts from there. “Status writes to others” are those to Services that the step does \
    not concern: each would be a write that changes nothing.";

const ONE_FOR_MANY: &str = "Every node writes each Service that it refuses into its report, so \
    the length of a report and the number of reports both grow with the Services. Refusals of \
    all nodes together are limited to 10,000 here. Nodes that hear of the Services in another \
    order may give the port to different ones, which keep it on those nodes.";

/// The document of all sizes.
pub(super) fn document(results: &Results) -> Document {
    let mut document = Document::new("scale", "Many nodes and many Services");
    let all = results.all();
    document.paragraph(SIMULATED);
    document.heading("All Services at once");
    document.table(bursts(all));
    document.paragraph(MEMORY);
    plots(&mut document, all);
    document.heading("All agents start");
    document.paragraph(AGENTS_START);
    document.table(starts(all));
    document.heading("One Service more");
    document.table(singles(all));
    document.heading("Writes to the API server");
    document.paragraph(WRITES);
    document.table(writes(all));
    document.heading("What every agent receives");
    document.paragraph(WATCHED);
    document.table(watched(all));
    document.heading("Nothing changes");
    document.paragraph(QUIET);
    document.table(quiet(all));
    document.heading("Failures");
    document.paragraph(TROUBLE);
    document.table(failures(all));
    document.heading("One port for many Services");
    document.paragraph(ONE_FOR_MANY);
    document.table(one_port(all));
    document
}

/// A table of those sizes that have the step, one row each.
fn table<const N: usize>(
    all: &[Measured],
    step: &str,
    headings: [&str; N],
    cells: impl Fn(&Measured, &Step) -> [f64; N],
) -> Table {
    let mut table = Table::new(&[&["nodes × Services"][..], &headings].concat());
    for measured in all {
        if let Some(step) = measured.step(step) {
            let cells = cells(measured, step).map(number);
            table.row([measured.size.to_string()].into_iter().chain(cells));
        }
    }
    table
}

fn figure(step: &Step, name: &str) -> f64 {
    step.figures.get(name).copied().unwrap_or(f64::NAN)
}

fn bursts(all: &[Measured]) -> Table {
    let headings = [
        "accepted within s",
        "all final after s",
        "after the last report s",
        "first address p50 s",
        "p99 s",
        "controller CPU s",
        "controller MiB",
        "follower MiB",
        "API server CPU s",
        "MiB",
        "etcd MiB",
    ];
    table(all, BURST, headings, |measured, step| {
        let server = step.process("kube-apiserver");
        [
            figure(step, "accepted"),
            figure(step, "settled"),
            figure(step, "settled after the last report"),
            figure(step, "first address, p50"),
            figure(step, "first address, p99"),
            step.controller().cpu,
            measured.controller_peak(),
            step.follower().rss,
            server.cpu,
            server.rss,
            step.etcd.1,
        ]
    })
}

fn starts(all: &[Measured]) -> Table {
    let headings = [
        "all have reported after s",
        "all final after s",
        "after the last report s",
        "status writes per Service",
        "reports per node",
        "KB sent, each",
        "ms per decision",
        "controller CPU s",
        "controller MiB",
        "follower MiB",
        "API server CPU s",
        "MiB",
        "etcd MiB",
    ];
    table(all, STARTED, headings, |measured, step| {
        let server = step.process("kube-apiserver");
        let reports = step.api.count("PATCH loadbalancernodes/status");
        [
            figure(step, "all have reported"),
            figure(step, "settled"),
            figure(step, "settled after the last report"),
            step.api.count("PATCH services/status") / measured.size.services as f64,
            reports / measured.size.nodes as f64,
            step.api.sent("patch loadbalancernodes") / reports / 1000.0,
            figure(step, "deciding") / figure(step, "decisions") * 1000.0,
            step.controller().cpu,
            measured.controller_peak(),
            step.follower().rss,
            server.cpu,
            server.rss,
            step.etcd.1,
        ]
    })
}

fn singles(all: &[Measured]) -> Table {
    let headings = [
        "final after s, median of 5",
        "most",
        "after the last report s, most",
        "status writes each",
    ];
    table(all, ONE, headings, |_, step| {
        [
            figure(step, "final, median"),
            figure(step, "final, most"),
            figure(step, "after the last report, most"),
            figure(step, "status writes each"),
        ]
    })
}

fn writes(all: &[Measured]) -> Table {
    let headings = [
        "`PATCH services/status` per Service",
        "KB sent, each",
        "`POST events` per Service",
        "`PATCH loadbalancernodes/status` per node",
        "KB sent, each",
        "`PUT leases` per node and s",
        "agents' decisions per node",
        "ms each",
    ];
    table(all, BURST, headings, |measured, step| {
        let (services, nodes) = (measured.size.services as f64, measured.size.nodes as f64);
        let status = step.api.count("PATCH services/status");
        let reports = step.api.count("PATCH loadbalancernodes/status");
        let decisions = figure(step, "decisions");
        [
            status / services,
            step.api.sent("patch services") / status / 1000.0,
            step.api.count("POST events") / services,
            reports / nodes,
            step.api.sent("patch loadbalancernodes") / reports / 1000.0,
            step.api.count("PUT leases") / nodes / step.lasted,
            decisions / nodes,
            figure(step, "deciding") / decisions * 1000.0,
        ]
    })
}

fn watched(all: &[Measured]) -> Table {
    let headings = [
        "events per Service",
        "KB each",
        "KB per Service to each node",
        "MB per Service to all nodes",
        "µs of API server CPU per event and watch",
    ];
    table(all, BURST, headings, |measured, step| {
        let events = step.events as f64 / measured.size.services as f64;
        let size = event_size(step);
        // Fewer watches are too few to be seen.
        let change = measured.step(CHANGES);
        let change = change.filter(|_| measured.size.nodes >= NODES);
        [
            events,
            size / 1000.0,
            events * size / 1000.0,
            events * size * measured.size.nodes as f64 / 1e6,
            change.map_or(f64::NAN, |step| figure(step, "µs per event and watch")),
        ]
    })
}

/// Bytes of an event of the Services.
fn event_size(step: &Step) -> f64 {
    let (events, bytes) = step
        .api
        .watched
        .get("services")
        .copied()
        .unwrap_or_default();
    bytes / events
}

fn quiet(all: &[Measured]) -> Table {
    let headings = [
        "Leases per s and node",
        "status writes",
        "reports",
        "Events",
        "controller CPU %",
        "follower CPU %",
        "API server CPU %",
        "etcd CPU %",
    ];
    table(all, IDLE, headings, |_, step| {
        let share = |cpu: f64| cpu / step.lasted * 100.0;
        [
            figure(step, "Leases per second and node"),
            step.api.count("PATCH services/status"),
            step.api.count("PATCH loadbalancernodes/status"),
            step.api.count("POST events"),
            share(step.controller().cpu),
            share(step.follower().cpu),
            share(step.process("kube-apiserver").cpu),
            share(step.process("etcd").cpu),
        ]
    })
}

/// One row for each failure, one column for each size.
fn failures(all: &[Measured]) -> Table {
    let rows = [
        (LOST, "settled", "a node is lost: out of all lists after s"),
        (LOST, "Services that listed it", "… which were so many"),
        (LOST, "controller CPU", "… controller CPU s"),
        (
            KILLED,
            "a new Service is final",
            "the leader is killed: a new Service is final after s",
        ),
        (
            KILLED,
            "the killed one is ready again",
            "… the killed one has read everything after s",
        ),
        (
            KILLED,
            "status writes to others",
            "… status writes to others",
        ),
        (
            RESTARTED,
            "ready",
            "the API server is killed: it is ready again after s",
        ),
        (
            RESTARTED,
            "a new Service is final",
            "… a new Service is final after s",
        ),
        (
            RESTARTED,
            "status writes to others",
            "… status writes to others",
        ),
        (
            HALF_LOST,
            "status writes while only silent",
            "half of the nodes are lost: status writes until Kubernetes says so",
        ),
        (HALF_LOST, "settled", "… all lists are final after s"),
        (HALF_LOST, "status writes", "… status writes"),
        (HALF_LOST, "controller CPU", "… controller CPU s"),
        (
            HALF_BACK,
            "settled",
            "they are back: all lists are final after s",
        ),
        (HALF_BACK, "status writes", "… status writes"),
    ];
    let sizes: Vec<String> = all
        .iter()
        .map(|measured| measured.size.to_string())
        .collect();
    let headings: Vec<&str> = sizes.iter().map(String::as_str).collect();
    let mut table = Table::new(&[&["what"][..], &headings].concat());
    for (name, figure, text) in rows {
        let cells = all.iter().map(|measured| {
            let step = measured.step(name)?;
            match figure {
                "status writes" => Some(step.api.count("PATCH services/status")),
                "controller CPU" => Some(step.controller().cpu),
                other => step.figures.get(other).copied(),
            }
        });
        let cells = cells.map(|value| value.map(number).unwrap_or_default());
        table.row([text.to_owned()].into_iter().chain(cells));
    }
    table
}

fn one_port(all: &[Measured]) -> Table {
    let headings = [
        "Services",
        "served",
        "all final after s",
        "status writes per Service",
        "reports per node",
        "KB sent, each",
        "controller CPU s",
        "controller MiB",
        "API server MiB",
        "etcd MiB",
    ];
    table(all, ONE_PORT, headings, |measured, step| {
        let reports = step.api.count("PATCH loadbalancernodes/status");
        [
            figure(step, "Services"),
            figure(step, "served"),
            figure(step, "settled"),
            step.api.count("PATCH services/status") / figure(step, "Services"),
            reports / measured.size.nodes as f64,
            step.api.sent("patch loadbalancernodes") / reports / 1000.0,
            step.controller().cpu,
            step.controller().peak,
            step.process("kube-apiserver").rss,
            step.etcd.1,
        ]
    })
}

/// How the figures grow with the nodes, and with the Services.
fn plots(document: &mut Document, all: &[Measured]) {
    type Of = fn(&Measured, &Step) -> f64;
    let memory: [(&str, Of); 2] = [
        ("controller after all Services", |_, step| {
            step.controller().rss
        }),
        ("controller, most ever", |measured, _| {
            measured.controller_peak()
        }),
    ];
    let cpu: [(&str, Of); 2] = [
        ("controller", |_, step| step.controller().cpu),
        ("API server", |_, step| step.process("kube-apiserver").cpu),
    ];
    let writes: [(&str, Of); 2] = [
        ("status writes per Service", |measured, step| {
            step.api.count("PATCH services/status") / measured.size.services as f64
        }),
        ("reports per node", |measured, step| {
            step.api.count("PATCH loadbalancernodes/status") / measured.size.nodes as f64
        }),
    ];
    for (file, title, unit, lines) in [
        ("memory", "Memory of the controller", "MiB", memory),
        ("cpu", "CPU time for all Services at once", "s", cpu),
        (
            "writes",
            "Writes for all Services at once",
            "writes",
            writes,
        ),
    ] {
        for (of, along) in [
            ("nodes", format!("nodes, with {SERVICES} Services")),
            ("services", format!("Services, with {NODES} nodes")),
        ] {
            let mut plot = Plot::new(title, Axis::logarithmic(&along), Axis::linear(unit));
            for (name, value) in lines {
                let points = all.iter().filter_map(|measured| {
                    let size = measured.size;
                    let (x, is_on_line) = match of {
                        "nodes" => (size.nodes, size.services == SERVICES),
                        _ => (size.services, size.nodes == NODES),
                    };
                    let step = measured.step(BURST).filter(|_| is_on_line)?;
                    Some((x as f64, value(measured, step)))
                });
                let points: Vec<_> = points.collect();
                if points.len() > 1 {
                    plot.line(name, points);
                }
            }
            if !plot.is_empty() {
                document.plot(&format!("{file}-{of}"), plot);
            }
        }
    }
}
