//! An nft that breaks while the agent runs: hangs, dies, is gone, prints rubbish, prints without
//! end, or only says that it did something. Shell scripts stand in for it.
//!
//! On a cluster of its own, each kind on a node of its own; n1's nft stays well.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, answers, web_pods, web_service};
use highwire_e2e::{
    Cluster, Node, PrivateCluster, Program, Programs as _, Scope, Svc, highwire, wait_for,
};
use macro_rules_attribute::apply;

/// What stands in for nft on n2 and the nodes after it.
const BROKEN: [(&str, &str); 6] = [
    ("n2", "exec sleep 1000"),
    ("n3", "kill -SEGV $$"),
    ("n4", "printf '{\"nftables\": \\033[2J 17'; cat >/dev/null"),
    ("n5", "exec yes"),
    ("n6", "head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1"),
    ("n7", ""),
];
/// Lines that an agent in trouble may log, from its nft's first failure until it is well again:
/// it tries again after 0.5 s, 1 s, 2 s and so on.
const MOST_LINES: usize = 80;
/// An agent never takes as much: its container has 256 MiB.
const MOST_KIB: u64 = 128 * 1024;

/// A node whose agent's nft can be broken.
struct Patient {
    node: Node,
    agent: Program,
    nft: PathBuf,
    broken: &'static str,
}

impl Patient {
    async fn start(cluster: &Cluster, name: &str, broken: &'static str) -> Result<Self> {
        let folder = cluster.state().path(format!("nft-{name}"));
        fs::create_dir_all(&folder)?;
        let patient = Self {
            node: cluster.node(name)?,
            agent: cluster.agent(name)?,
            nft: folder.join("nft"),
            broken,
        };
        patient.write("exec /usr/sbin/nft \"$@\"")?;
        cluster.opt_in(name).await?;
        let nft = format!("--nft={}", patient.nft.display());
        patient.agent.start(&[&nft, "--nft-timeout=2s"]).await?;
        patient.agent.wait_ready(highwire::READY).await?;
        Ok(patient)
    }

    /// By renaming, so that nobody runs half of it. Without a body there is no program.
    fn write(&self, body: &str) -> Result<()> {
        let new = self.nft.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{body}\n"))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        match body {
            "" => fs::remove_file(&self.nft),
            _ => fs::rename(&new, &self.nft),
        }
        .context("replace nft")
    }

    fn lines(&self) -> usize {
        self.agent.unit().log().lines().count()
    }

    /// The node says what is wrong, and is listed no more.
    async fn says_so(&self, cluster: &Cluster, service: &Svc) {
        let name = &self.node.name;
        wait_for(
            &format!("{name} to say that it cannot program"),
            LONG * 2,
            || async {
                let report = cluster.kubectl(&["get", "lbn", name, "-oyaml"])?;
                ensure!(report.contains("reason: ApplyFailed"), "{report}");
                let ready = format!("{:?}", self.agent.get("/readyz"));
                ensure!(ready.contains("ApplyFailed"), "{ready}");
                let failures = "highwire_agent_not_ready{reason=\"ApplyFailed\"}";
                ensure!(self.agent.metric(failures)? == 1.0);
                let ingress = service.ingress_ips().await?;
                let address = self.node.addresses()[0].to_string();
                ensure!(!ingress.contains(&address), "{ingress:?}");
                Ok(())
            },
        )
        .await;
    }
}

#[apply(cluster_test)]
async fn an_nft_that_breaks_leaves_the_rules_and_is_named_until_it_is_well() -> Result<()> {
    let nodes = u8::try_from(BROKEN.len())? + 1;
    let cluster = PrivateCluster::up("nft", nodes).await?;
    highwire::start_with(&cluster, &[], &[]).await?;
    cluster.agent("n2")?.stop()?;
    let mut patients = Vec::new();
    for (name, broken) in BROKEN {
        patients.push(Patient::start(&cluster, name, broken).await?);
    }
    let scope = Scope::new(&cluster, "nft").await?;
    web_pods(&scope).await?;
    let [old_port, new_port] = [scope.free_port()?, scope.free_port()?];
    let old = web_service(&scope, "old", old_port).await?;
    wait_for("every node to be listed", LONG, || async {
        let found = old.ingress_ips().await?;
        ensure!(found.len() == usize::from(nodes), "{found:?}");
        Ok(())
    })
    .await;
    let state = |patient: &Patient| (patient.agent.unit().pid(), patient.lines());
    let before: Vec<_> = patients.iter().map(state).collect();

    // What was there stays, and what comes is added: that takes no nft.
    for patient in &patients {
        patient.write(patient.broken)?;
    }
    let new = web_service(&scope, "new", new_port).await?;
    wait_for("every node to be listed for the new one", LONG, || async {
        let found = new.ingress_ips().await?;
        ensure!(found.len() == usize::from(nodes), "{found:?}");
        Ok(())
    })
    .await;
    for patient in &patients {
        for port in [old_port, new_port] {
            answers(&cluster.outside(), patient.node.v4(port)).await;
        }
    }

    // The table is gone, and nothing can build another.
    for patient in &patients {
        let delete = ["nft", "delete", "table", "inet", "highwire"];
        patient.node.netns().check(&delete)?;
    }
    for patient in &patients {
        patient.says_so(&cluster, &old).await;
    }
    answers(&cluster.outside(), cluster.node("n1")?.v4(old_port)).await;
    for patient in &patients {
        let used = patient
            .agent
            .unit()
            .rss_kib()
            .context("the agent has ended")?;
        ensure!(used < MOST_KIB, "{}: {used} KiB", patient.node.name);
        patient.write("exec /usr/sbin/nft \"$@\"")?;
    }
    // It tries again at the latest after 30 s.
    wait_for("every node to be back", LONG * 3, || async {
        for service in [&old, &new] {
            let found = service.ingress_ips().await?;
            ensure!(found.len() == usize::from(nodes), "{found:?}");
        }
        Ok(())
    })
    .await;
    for (patient, (pid, lines)) in patients.iter().zip(before) {
        for port in [old_port, new_port] {
            answers(&cluster.outside(), patient.node.v4(port)).await;
        }
        let name = &patient.node.name;
        ensure!(
            patient.agent.unit().pid() == pid,
            "{name}: it was started again"
        );
        let logged = patient.lines() - lines;
        ensure!(
            logged < MOST_LINES,
            "{name}: {logged} lines\n{}",
            patient.agent.unit().tail(100)
        );
        let longest = patient.agent.unit().log().lines().map(str::len).max();
        ensure!(longest < Some(4_000), "{name}: a line of {longest:?} bytes");
    }
    Ok(())
}
