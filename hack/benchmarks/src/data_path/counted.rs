//! What a path and a Service take, whatever the machine: entries of conntrack, rules and
//! elements of our table.

use std::io::Read as _;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::layout::CLIENT_V4;
use highwire_e2e::{highwire, wait_for};
use serde_json::Value;

use crate::data_path::bed::Bed;
use crate::data_path::path::Path;
use crate::output::counts::Counts;

/// Connections at a time.
const CONNECTIONS: usize = 10;
const LIMIT: Duration = Duration::from_secs(20);

/// Counts all of it.
pub(crate) async fn count(bed: &Bed, counts: &mut Counts) -> Result<()> {
    for path in Path::ALL {
        // How many connections to the Pods nginx keeps is its own affair.
        if path != Path::Proxy {
            let entries = conntrack_entries(bed, path)?;
            let name = format!(
                "data-path: conntrack entries of a connection, {}",
                path.name()
            );
            counts.add(name, entries as f64 / CONNECTIONS as f64);
        }
    }
    table(bed, counts).await
}

/// Entries of so many connections by that path, in all network namespaces on the way.
fn conntrack_entries(bed: &Bed, path: Path) -> Result<usize> {
    bed.forget_connections()?;
    let to = bed.web(path)?;
    let connections: Result<Vec<TcpStream>> = bed.client.run(|| {
        let to = to.iter().cycle().take(CONNECTIONS);
        to.map(|to| Ok(TcpStream::connect_timeout(to, LIMIT)?))
            .collect()
    });
    let connections = connections.with_context(|| path.name())?;
    let node = bed.node(path);
    let pods = format!("=10.244.{}.", node.index);
    let client = format!("={CLIENT_V4} ");
    let mut entries = 0;
    for netns in [node.netns(), &bed.klipper()] {
        let list = netns.check(&["conntrack", "--dump", "--proto", "tcp"])?;
        let ours = |line: &&str| line.contains(&pods) || line.contains(&client);
        entries += list.lines().filter(ours).count();
    }
    for mut connection in connections {
        connection.shutdown(Shutdown::Write)?;
        // Until the server has closed it too: what comes later would make an entry anew.
        connection.read_to_end(&mut Vec::new())?;
    }
    Ok(entries)
}

/// What our table holds, and what one more Service of one port adds to it.
async fn table(bed: &Bed, counts: &mut Counts) -> Result<()> {
    let before = Size::read(bed)?;
    let transactions = transactions(bed)?;
    let service = bed.scope.service("counted").load_balancer();
    let port = bed.scope.free_port()?;
    let service = service
        .select("app", "web")
        .tcp(port, 8080)
        .create()
        .await?;
    wait_for("the Service's ingress", LIMIT, || async {
        service
            .ingress()
            .await
            .is_ok_and(|ingress| ingress.len() == highwire::SERVING.len())
    })
    .await;
    let after = Size::read(bed)?;
    ensure!(
        before.rules == after.rules,
        "a Service changed the rules: {before:?}, {after:?}"
    );
    counts.add("data-path: rules of the table", after.rules as f64);
    counts.add(
        "data-path: elements of a Service with one port",
        after.elements as f64 - before.elements as f64,
    );
    counts.add(
        "data-path: nft transactions of a Service with one port",
        self::transactions(bed)? - transactions,
    );
    service.delete().await
}

/// How large our table is.
#[derive(Clone, Copy, Debug)]
struct Size {
    rules: usize,
    elements: usize,
}

impl Size {
    fn read(bed: &Bed) -> Result<Self> {
        let list = ["nft", "--json", "list", "table", "inet", "highwire"];
        let table: Value = serde_json::from_str(&bed.node.netns().check(&list)?)?;
        let objects = table["nftables"]
            .as_array()
            .context("nft lists no objects")?;
        let rules = objects.iter().filter(|object| object.get("rule").is_some());
        let sets = objects
            .iter()
            .filter_map(|object| object.get("set").or(object.get("map")));
        Ok(Self {
            rules: rules.count(),
            elements: sets
                .filter_map(|set| Some(set["elem"].as_array()?.len()))
                .sum(),
        })
    }
}

/// nft transactions of the agent so far.
fn transactions(bed: &Bed) -> Result<f64> {
    let metrics = bed.agent.metrics()?;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("highwire_agent_applies_total{"));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum())
}
