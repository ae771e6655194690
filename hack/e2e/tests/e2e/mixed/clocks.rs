//! Controllers whose clocks are an hour off. Clocks of namespaces are the machine's, so
//! libfaketime gives the process a wrong wall clock; durations stay right, as they do when a
//! real clock is set.

use std::env::consts::ARCH;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, ingress_is, web_pods, web_service};
use highwire_e2e::model::Checker;
use highwire_e2e::{Cluster, PrivateCluster, Program, Scope, highwire, wait_for};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use macro_rules_attribute::apply;

/// A controller whose wall clock is off by `offset`, such as `+1h`.
fn with_clock(cluster: &Cluster, name: &str, offset: &str) -> Result<Program> {
    // Where Debian's libfaketime has it.
    let library = format!("/usr/lib/{ARCH}-linux-gnu/faketime/libfaketimeMT.so.1");
    ensure!(
        Path::new(&library).exists(),
        "{library} is missing: run hack/install-deps clock"
    );
    let controller = cluster.controller(name)?.with_env("LD_PRELOAD", &library);
    let controller = controller.with_env("FAKETIME", offset);
    Ok(controller.with_env("FAKETIME_DONT_FAKE_MONOTONIC", "1"))
}

/// How far the leader's clock is ahead of this machine's, by the Lease that it renews.
async fn leader_is_ahead(cluster: &Cluster) -> Result<SignedDuration> {
    let leases: Api<Lease> = Api::namespaced(cluster.client(), "highwire-system");
    let spec = leases.get("highwire-controller").await?.spec;
    let renewed = spec.and_then(|spec| spec.renew_time);
    let MicroTime(renewed) = renewed.context("the Lease was never renewed")?;
    Ok(renewed.duration_since(Timestamp::now()))
}

#[apply(cluster_test)]
async fn controllers_whose_clocks_are_an_hour_off_lead_and_judge_leases_as_others() -> Result<()> {
    let cluster = PrivateCluster::up("clock", 3).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "clock").await?;
    web_pods(&scope).await?;
    let service = web_service(&scope, "web", scope.free_port()?).await?;
    ingress_is(&service, &BOTH).await;
    let mut checker = Checker::new(&cluster);
    for (offset, other) in [("+1h", "c2"), ("-1h", "c1")] {
        let wrong = if other == "c2" { "c1" } else { "c2" };
        cluster.controller(wrong)?.stop()?;
        let controller = with_clock(&cluster, wrong, offset)?;
        controller.start(&[]).await?;
        controller.wait_ready(LONG).await?;
        // It takes over from one whose clock is right, or an hour off the other way.
        cluster.controller(other)?.kill()?;
        wait_for("the other controller to lead", LONG, || async {
            let leader = highwire::leader(&cluster).await?;
            ensure!(leader == wrong, "{leader} leads");
            let ahead = leader_is_ahead(&cluster).await?;
            let is_wrong = match offset {
                "+1h" => ahead.as_mins() > 50,
                _ => ahead.as_mins() < -50,
            };
            ensure!(is_wrong, "its clock is {ahead} ahead");
            anyhow::Ok(())
        })
        .await;
        // To it every Lease has expired long ago, or is from the future: nobody is dead.
        ensure!(service.ingress_ips().await? == BOTH, "nothing has changed");
        checker.settled(LONG).await?;
        // And one that is silent from now on is.
        let agent = cluster.agent("n2")?;
        agent.kill()?;
        ingress_is(&service, &[BOTH[0]]).await;
        agent.unit().start_again()?;
        ingress_is(&service, &BOTH).await;
        let log = controller.unit().log();
        ensure!(!log.contains("panicked"), "{log}");
        cluster.controller(other)?.unit().start_again()?;
        cluster.controller(other)?.wait_ready(LONG).await?;
    }
    Ok(())
}
