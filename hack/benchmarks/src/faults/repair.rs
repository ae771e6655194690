//! Another program takes our table away: how long until it is back.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use highwire_e2e::expect::answers;
use highwire_e2e::traffic::http_get;
use highwire_e2e::{Cluster, Netns, Node, Programs as _, Scope};
use serde_json::json;

use super::machine::Watched;
use super::{Amount, serve_everywhere};
use crate::Effort;
use crate::control_path::kernel::serves_tcp;
use crate::output::counts::Counts;
use crate::output::document::Document;
use crate::output::stats::Sample;
use crate::output::table::{Table, number};

const ROUNDS: usize = 200;
/// After as long without a repair the agent takes the next one for a first one.
const CALM: Duration = Duration::from_secs(31);
const LIMIT: Duration = Duration::from_secs(60);
/// Between two questions to a kernel.
const PAUSE: Duration = Duration::from_micros(300);
/// After as long the table must have been gone.
const UNSEEN: Duration = Duration::from_secs(2);
const ATTEMPT: Duration = Duration::from_millis(250);
/// Between two connections of a client.
const BETWEEN: Duration = Duration::from_millis(2);

/// How the table goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tamper {
    /// Ours alone.
    Table,
    /// Every table of the node, kube-proxy's too.
    Ruleset,
}

impl Tamper {
    const ALL: [Self; 2] = [Self::Table, Self::Ruleset];

    fn command(self) -> &'static [&'static str] {
        match self {
            Self::Table => &["nft", "delete", "table", "inet", "highwire"],
            Self::Ruleset => &["nft", "flush", "ruleset"],
        }
    }
}

/// One table that went and came.
struct Repaired {
    tamper: Tamper,
    /// Milliseconds without it.
    without: f64,
    /// Until a new connection was answered that began without it or later; `None` where
    /// kube-proxy's rules went too, for which kube-proxy takes its own time.
    answered: Option<f64>,
}

/// Takes the table away on all nodes, one time after the other.
pub(crate) async fn measure(
    cluster: &Cluster,
    effort: Effort,
    amount: Amount,
    counts: &mut Counts,
) -> Result<Document> {
    let rounds = amount.rounds.unwrap_or(ROUNDS);
    let nodes = serve_everywhere(cluster).await?;
    let scope = Scope::new(cluster, "repair").await?;
    scope
        .pod("web-1")
        .label("app", "web")
        .tcp(8080)
        .start()
        .await?;
    let port = scope.free_port()?;
    let service = scope.service("web").load_balancer().select("app", "web");
    let service = service.tcp(port, 8080).create().await?;
    for node in &nodes {
        answers(&cluster.outside(), node.v4(port)).await;
    }
    let counted = repairs(cluster, &nodes)?;
    let watched = Watched::new(&cluster.outside())?;
    let pause = match effort {
        Effort::Full => CALM,
        Effort::Quick => Duration::ZERO,
    };
    // The first half of the nodes loses our table alone, and clients are asked there.
    let each = nodes.iter().enumerate().map(|(index, node)| {
        let tamper = Tamper::ALL[index * Tamper::ALL.len() / nodes.len()];
        let times = (rounds + nodes.len() - 1 - index) / nodes.len();
        let (node, client) = (node.clone(), cluster.outside());
        tokio::task::spawn_blocking(move || repeat(&node, &client, port, tamper, times, pause))
    });
    let (mut repaired, mut made) = (Vec::new(), 0);
    for node in futures::future::join_all(each).await {
        let (of_node, made_there) = node??;
        repaired.extend(of_node);
        made += made_there;
    }
    counts.add("repair: tables put back", repaired.len() as f64);
    let counted = repairs(cluster, &nodes)? - counted;
    counts.add("repair: repairs beyond those", counted - made as f64);
    service.delete().await?;
    document(&repaired, made, nodes.len(), &watched.words()?)
}

/// How often agents say that they have repaired their tables.
fn repairs(cluster: &Cluster, nodes: &[Node]) -> Result<f64> {
    let each = nodes.iter().map(|node| {
        let agent = cluster.agent(&node.name)?;
        agent.metric("highwire_agent_drift_repairs_total")
    });
    each.sum()
}

fn document(repaired: &[Repaired], made: usize, nodes: usize, words: &str) -> Result<Document> {
    let mut document = Document::new("faults-repair", "The table is taken away");
    document.paragraph(&format!(
        "{} times on {nodes} nodes with kube-proxies of both modes, {} s apart on each, since an \
         agent waits longer for the next repair if they come quickly one after the other. The time \
         is that in which the kernel has no table of ours, asked every 0.3 ms, and until a client's \
         first new connection is answered that began after the table had gone; it tries every 2 ms. \
         {} times it was back before the one who asks had its turn; these are not in the table. \
         {words}",
        made, CALM.as_secs(), made - repaired.len(),
    ));
    let mut table = Table::new(&["ms", "p50", "p99", "max", "times"]);
    let mut data = serde_json::Map::new();
    let pick = |tamper: Tamper| repaired.iter().filter(move |it| it.tamper == tamper);
    let rows = [
        (
            "our table deleted → back",
            pick(Tamper::Table).map(|it| it.without).collect(),
        ),
        (
            "our table deleted → a connection answered",
            pick(Tamper::Table).filter_map(|it| it.answered).collect(),
        ),
        (
            "`nft flush ruleset` → our table back",
            pick(Tamper::Ruleset)
                .map(|it| it.without)
                .collect::<Vec<_>>(),
        ),
    ];
    for (name, values) in rows {
        let Some(sample) = Sample::new(values) else {
            continue;
        };
        let figures = [sample.median(), sample.percentile(0.99), sample.max()].map(number);
        let cells = [name.to_owned()].into_iter().chain(figures);
        table.row(cells.chain([sample.count().to_string()]));
        let figures = json!({"p50_ms": sample.median(), "p99_ms": sample.percentile(0.99),
                             "max_ms": sample.max(), "times": sample.count()});
        data.insert(name.replace('`', ""), figures);
    }
    document.table(table);
    document.data(data.into());
    Ok(document)
}

fn repeat(
    node: &Node,
    client: &Netns,
    port: u16,
    tamper: Tamper,
    times: usize,
    pause: Duration,
) -> Result<(Vec<Repaired>, usize)> {
    let (mut repaired, mut made) = (Vec::new(), 0);
    while repaired.len() < times {
        thread::sleep(pause);
        made += 1;
        match once(node, client, port, tamper)? {
            Some(one) => {
                let (round, without) = (repaired.len(), one.without);
                eprintln!("repair on {}: {round} {without:.0} ms", node.name);
                repaired.push(one);
            }
            // On a machine that is busy with other things.
            None => eprintln!(
                "repair on {}: over before the watch had its turn",
                node.name
            ),
        }
        ensure!(made < times * 2 + 10, "the watch hardly ever has its turn");
    }
    Ok((repaired, made))
}

/// Takes the table away once; `None` if it was back before anybody saw it gone.
fn once(node: &Node, client: &Netns, port: u16, tamper: Tamper) -> Result<Option<Repaired>> {
    let (watching, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (place, seen, over) = (node.netns().clone(), watching.clone(), done.clone());
    let watch = thread::spawn(move || place.run(|| gap(port, &seen, &over)));
    while !watching.load(Ordering::Relaxed) && !watch.is_finished() {
        thread::sleep(BETWEEN);
    }
    let probe = (tamper == Tamper::Table).then(|| {
        let (client, to) = (client.clone(), node.v4(port));
        let (answered, answers) = mpsc::channel();
        thread::spawn(move || client.run(|| attempts(to, &answered)));
        answers
    });
    node.netns().check(tamper.command())?;
    done.store(true, Ordering::Relaxed);
    let seen = watch.join().ok().context("the watch panicked")??;
    let Some((gone, back)) = seen else {
        return Ok(None);
    };
    let mut answered = None;
    if let Some(answers) = probe {
        let first = loop {
            let next = answers.recv_timeout(LIMIT);
            let (begun, ended) = next.context("no connection is answered")?;
            if begun >= gone {
                break ended;
            }
        };
        answered = Some((first - gone).as_secs_f64() * 1e3);
    }
    Ok(Some(Repaired {
        tamper,
        without: (back - gone).as_secs_f64() * 1e3,
        answered,
    }))
}

/// When the kernel had lost the port, and when it had it again; `None` if that was not seen
/// though it is `over`.
fn gap(port: u16, watching: &AtomicBool, over: &AtomicBool) -> Result<Option<(Instant, Instant)>> {
    let start = Instant::now();
    ensure!(serves_tcp(port), "port {port} is not there");
    watching.store(true, Ordering::Relaxed);
    let mut over_since = None;
    while serves_tcp(port) {
        if over.load(Ordering::Relaxed) {
            let since = *over_since.get_or_insert_with(Instant::now);
            if since.elapsed() > UNSEEN {
                return Ok(None);
            }
        }
        thread::sleep(PAUSE);
    }
    let gone = Instant::now();
    while !serves_tcp(port) {
        ensure!(
            start.elapsed() < LIMIT,
            "port {port} is not back after {LIMIT:?}"
        );
        thread::sleep(PAUSE);
    }
    Ok(Some((gone, Instant::now())))
}

/// Connects, and sends when each connection began and ended that was answered, until nobody wants
/// to know any more.
fn attempts(to: SocketAddr, answered: &mpsc::Sender<(Instant, Instant)>) {
    loop {
        let begun = Instant::now();
        if http_get(to, ATTEMPT).is_ok() && answered.send((begun, Instant::now())).is_err() {
            return;
        }
        thread::sleep(BETWEEN);
    }
}
