//! A node whose conntrack table is full: the kernel opens no connection any more, by any way.
//!
//! The limit is the whole kernel's and cannot be changed here, but each network namespace counts
//! for itself: n1's table is filled up to that limit. On a cluster of its own.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, SHORT, answers, ingress_is, web_pods, web_service};
use highwire_e2e::{ConnectError, Netns, PrivateCluster, Programs as _, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

/// Where the connections go that fill the table, and nothing else.
const NOWHERE: &str = "203.0.113.77";
const PORTS: usize = 60_000;

fn read(netns: &Netns, name: &str) -> Result<usize> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let text = netns
        .run(|| fs::read_to_string(&path))
        .with_context(|| path.clone())?;
    Ok(text.trim().parse()?)
}

/// Adds connections that the kernel does not drop by itself until it takes no more.
fn fill(netns: &Netns, folder: &std::path::Path) -> Result<()> {
    let most = read(netns, "nf_conntrack_max")?;
    ensure!(
        most > 0,
        "this kernel has no limit: net.netfilter.nf_conntrack_max is 0"
    );
    let mut text = String::new();
    for number in 0..most + 1_000 {
        let (host, port) = (number / PORTS + 1, number % PORTS + 1024);
        writeln!(
            text,
            "-I -s 203.0.113.{host} -d {NOWHERE} -p udp --sport {port} --dport 9 --timeout 900 \
             -u SEEN_REPLY,ASSURED"
        )?;
    }
    let file = folder.join("fill");
    fs::write(&file, text)?;
    // It ends with an error when the table is full.
    let command = format!(
        "conntrack --load-file {} >/dev/null 2>&1 || true",
        file.display()
    );
    netns.check(&["sh", "-c", &command])?;
    let count = read(netns, "nf_conntrack_count")?;
    ensure!(count + 50 >= most, "{count} of {most} connections");
    Ok(())
}

#[apply(cluster_test)]
async fn a_full_conntrack_table_stops_new_connections_only_and_needs_no_restart() -> Result<()> {
    let cluster = PrivateCluster::up("full", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "full").await?;
    web_pods(&scope).await?;
    let [port, later_port] = [scope.free_port()?, scope.free_port()?];
    let service = scope.service("web").load_balancer().select("app", "web");
    let service = service.tcp(port, 8080).udp(port, 5353).create().await?;
    ingress_is(&service, &BOTH).await;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    let (to, agent) = (n1.v4(port), cluster.agent("n1")?);
    answers(&client, to).await;
    let mut open = client.tcp_connect(to, LONG)?;
    let mut flow = client.udp_flow(to)?;
    flow.ask(LONG)?;
    let pid = agent.unit().pid();

    // Filling may take longer than the 30 s after which the flow would be forgotten.
    n1.netns()
        .check(&["sysctl", "-w", "net.netfilter.nf_conntrack_udp_timeout=600"])?;
    flow.ask(LONG)?;
    fill(n1.netns(), cluster.state().dir())?;
    wait_for("the kernel to open no connection", LONG, || async {
        match client.http_get(to, SHORT) {
            Err(ConnectError::Timeout) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    open.say("still there")?;
    flow.ask(LONG)?;
    answers(&client, cluster.node("n2")?.v4(port)).await;
    // The kernel's tables are changed all the same.
    let later = web_service(&scope, "later", later_port).await?;
    wait_for("the new port in n1's kernel", LONG, || async {
        let listed = n1
            .netns()
            .check(&["nft", "list", "map", "inet", "highwire", "clusterip4"])?;
        ensure!(listed.contains(&format!("tcp . {later_port} ")), "{listed}");
        Ok(())
    })
    .await;
    answers(&client, cluster.node("n2")?.v4(later_port)).await;

    let empty = format!("conntrack -D -d {NOWHERE} >/dev/null");
    n1.netns().check(&["sh", "-c", &empty])?;
    answers(&client, to).await;
    answers(&client, n1.v4(later_port)).await;
    wait_for("an answer by UDP", LONG, || async {
        client.udp_ask(to, SHORT)
    })
    .await;
    flow.ask(LONG)?;
    open.say("and still")?;
    ingress_is(&later, &BOTH).await;
    ingress_is(&service, &BOTH).await;
    ensure!(agent.unit().pid() == pid, "the agent was started again");
    Ok(())
}
