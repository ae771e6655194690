//! What a failed test says and, if that is asked for, keeps.

use std::process::Command;

use anyhow::{Result, bail, ensure};
use highwire_e2e::bed::test::KEEP;
use highwire_e2e::expect::{BOTH, answers, ingress_is, web_pods, web_service};
use highwire_e2e::lab::init::Init;
use highwire_e2e::lab::state::State;
use highwire_e2e::{Cluster, PrivateCluster, Scope, cluster_test, highwire, lifecycle};
use macro_rules_attribute::apply;

/// Run by the test below only.
#[apply(cluster_test)]
#[ignore = "fails on purpose"]
async fn on_purpose() -> Result<()> {
    let cluster = PrivateCluster::up("bad", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "bad").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    ingress_is(&web_service(&scope, "web", port).await?, &BOTH).await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    bail!("on purpose, port {port}")
}

#[apply(cluster_test)]
async fn a_failed_test_shows_its_cluster_and_keeps_it_if_asked_to() -> Result<()> {
    let state = State::new(&format!("{}bad", Cluster::shared()?.name))?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "mixed::failing::on_purpose"])
        .env(KEEP, "1")
        .output()?;
    let kept = Init::of(&state).is_some();
    lifecycle::down(state.name())?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(kept, "the cluster was not kept:\n{said}");
    ensure!(!output.status.success(), "{said}");
    for wanted in [
        "on purpose, port 20000",
        "agent-n1.log",
        "controller-c2.log",
        "Service web: 20000/TCP",
        "Pod web-1 on n1",
        "/n1: what is in table inet highwire",
        "tcp . 20000 : 10.96.",
        "dst=192.0.2.11 ",
        " dport=20000 ",
        &format!("hack/cluster --name {} down", state.name()),
    ] {
        ensure!(said.contains(wanted), "no {wanted:?} in:\n{said}");
    }
    Ok(())
}
