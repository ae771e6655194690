//! What a container is allowed, as the kernel has it, and what happens to one that uses too
//! much memory or no longer answers.

use anyhow::{Context, Result, ensure};
use highwire_e2e::highwire::installed::{self, Component, agent_pod};
use highwire_e2e::{Cluster, Container, cluster_test, wait_for};
use k8s_openapi::api::core::v1::Pod;
use macro_rules_attribute::apply;

use super::bed::{LONGER, alone, has_table, kubectl, restarts, together};

/// NET_ADMIN is capability 12: `linux/capability.h`.
const NET_ADMIN: u64 = 1 << 12;
/// In `/proc/PID/status`: a filter program is in force.
const SECCOMP_FILTER: u64 = 2;
const LIMIT: u64 = 256 << 20;

fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(value
        .with_context(|| format!("no {name}: {status}"))?
        .trim())
}

/// What holds for both programs.
fn is_confined(container: &Container, capabilities: u64, user: &str) -> Result<()> {
    let status = container.proc_1("status")?;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let value = u64::from_str_radix(field(&status, set)?, 16)?;
        ensure!(value & !capabilities == 0, "{set} {value:x}");
    }
    for set in ["CapInh", "CapAmb"] {
        ensure!(u64::from_str_radix(field(&status, set)?, 16)? == 0, "{set}");
    }
    ensure!(field(&status, "NoNewPrivs")? == "1");
    ensure!(field(&status, "Seccomp")? == SECCOMP_FILTER.to_string());
    let users: Vec<&str> = field(&status, "Uid")?.split_whitespace().collect();
    ensure!(users == [user; 4], "{users:?}");
    let mounts = container.proc_1("mountinfo")?;
    let root = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (*fields.get(4)? == "/").then(|| fields.get(5).copied())?
    });
    let root = root.context("no root mount")?;
    ensure!(root.split(',').any(|option| option == "ro"), "/ is {root}");
    let folder = container.memory_cgroup()?;
    let limits = ["memory.max", "memory.limit_in_bytes"].map(|file| {
        let path = container.machine().file(format!("{folder}/{file}"));
        path.and_then(|path| Ok(std::fs::read_to_string(path)?))
    });
    let limit = limits.into_iter().flatten().next();
    let limit: u64 = limit.context("no memory limit")?.trim().parse()?;
    ensure!(limit == LIMIT, "{limit}");
    Ok(())
}

#[apply(cluster_test)]
async fn the_kernel_confines_the_containers_as_deploy_says() -> Result<()> {
    let (cluster, _scope) = together("confined").await?;
    for node in cluster.nodes() {
        let agent = Container::of(&cluster, &agent_pod(&cluster, &node.name).await?)?;
        is_confined(&agent, NET_ADMIN, "0")?;
        let effective = agent.proc_1("status")?;
        let effective = u64::from_str_radix(field(&effective, "CapEff")?, 16)?;
        ensure!(effective == NET_ADMIN, "the agent needs it");
    }
    for pod in installed::pods(&cluster, Component::Controller).await? {
        is_confined(&Container::of(&cluster, &pod)?, 0, "65532")?;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn no_probe_fails_when_a_program_starts() -> Result<()> {
    let bed = alone("probes").await?;
    let cluster = &bed.cluster;
    for what in ["daemonset/highwire-agent", "deployment/highwire-controller"] {
        kubectl(
            cluster,
            &format!("rollout restart -n highwire-system {what}"),
        )?;
    }
    installed::agents_ready(cluster).await?;
    installed::controllers_ready(cluster).await?;
    for component in [Component::Agent, Component::Controller] {
        for pod in installed::pods(cluster, component).await? {
            let uid = pod.metadata.uid.context("no UID")?;
            let unhealthy = kubectl(
                cluster,
                &format!(
                    "get events -n highwire-system --no-headers \
                     --field-selector reason=Unhealthy,involvedObject.uid={uid}"
                ),
            )?;
            ensure!(unhealthy.is_empty(), "{unhealthy}");
        }
    }
    Ok(())
}

/// Waits until the container of the agent on n1 has been restarted, and why.
async fn restarted(cluster: &Cluster, before: &Pod) -> Result<String> {
    let count = restarts(before)?;
    let reason = wait_for("a restart of the agent", LONGER * 3, || async {
        let pod = agent_pod(cluster, "n1").await?;
        ensure!(pod.metadata.uid == before.metadata.uid, "another Pod");
        ensure!(restarts(&pod)? > count, "{:?}", pod.status);
        let status = pod.status.context("no status")?;
        let first = status
            .container_statuses
            .and_then(|all| all.into_iter().next());
        let last = first
            .and_then(|it| it.last_state)
            .and_then(|it| it.terminated);
        let last = last.context("no last state")?;
        anyhow::Ok(last.reason.unwrap_or_default())
    })
    .await;
    Ok(reason)
}

#[apply(cluster_test)]
async fn an_agent_out_of_memory_is_restarted_and_its_node_goes_on() -> Result<()> {
    let bed = alone("memory").await?;
    let cluster = &bed.cluster;
    let pod = agent_pod(cluster, "n1").await?;
    let agent = Container::of(cluster, &pod)?;
    // Another process uses the memory up; the kernel is to choose the agent to end.
    let (pid, folder) = (agent.pid(), agent.memory_cgroup()?);
    let hog = format!(
        "echo 1000 >/proc/{pid}/oom_score_adj; echo 0 >{folder}/cgroup.procs; \
         tail /dev/zero || true"
    );
    agent.machine().check(&["sh", "-ec", &hog])?;
    let reason = restarted(cluster, &pod).await?;
    ensure!(reason == "OOMKilled", "{reason}");
    ensure!(has_table(cluster.node("n1")?.netns())?);
    bed.answers().await?;
    installed::agents_ready(cluster).await?;
    bed.is_advertised().await;
    Ok(())
}

#[apply(cluster_test)]
async fn an_agent_that_no_longer_answers_is_restarted_and_its_node_goes_on() -> Result<()> {
    let bed = alone("stuck").await?;
    let cluster = &bed.cluster;
    let pod = agent_pod(cluster, "n1").await?;
    let began = std::time::Instant::now();
    Container::of(cluster, &pod)?.signal("STOP")?;
    let reason = restarted(cluster, &pod).await?;
    println!("stuck, restarted after {:.0?} ({reason})", began.elapsed());
    ensure!(has_table(cluster.node("n1")?.netns())?);
    bed.answers().await?;
    installed::agents_ready(cluster).await?;
    bed.is_advertised().await;
    let events = kubectl(cluster, "get events -n highwire-system")?;
    ensure!(events.contains("Liveness probe failed"), "{events}");
    Ok(())
}
