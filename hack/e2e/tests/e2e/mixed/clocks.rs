//! Controllers whose clocks are an hour off. Clocks of namespaces are the machine's, so
//! libfaketime gives the process a wrong wall clock; durations stay right, as they do when a
//! real clock is set.

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, ingress_is, web_pods, web_service};
use highwire_e2e::model::Checker;
use highwire_e2e::{Cluster, PrivateCluster, Program, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A controller whose wall clock is off by `offset`, such as `+1h`.
fn with_clock(cluster: &Cluster, name: &str, offset: &str) -> Result<Program> {
    ensure!(
        std::path::Path::new(LIBRARY).exists(),
        "{LIBRARY} is missing: run hack/install-deps clock"
    );
    let controller = cluster.controller(name)?.with_env("LD_PRELOAD", LIBRARY);
    let controller = controller.with_env("FAKETIME", offset);
    Ok(controller.with_env("FAKETIME_DONT_FAKE_MONOTONIC", "1"))
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
        let renewed = controller.unit().log();
        ensure!(!renewed.contains("panicked"), "{renewed}");
        cluster.controller(other)?.unit().start_again()?;
        cluster.controller(other)?.wait_ready(LONG).await?;
    }
    Ok(())
}
