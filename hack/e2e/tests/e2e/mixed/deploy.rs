//! What `deploy/` gives our programs is what they have here: arguments, environment,
//! capabilities, ports, probes, time to end.
//!
//! Not the same here: users (the controllers are root without capabilities), the read-only
//! root filesystem, seccomp, limits of memory and CPU.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::expect::{LONG, SHORT, web};
use highwire_e2e::{Cluster, Program, Programs as _, checkout, cluster_test, wait_for};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, PodSpec};
use macro_rules_attribute::apply;

/// What every process has here, and flags that the harness adds.
const OWN_ENVIRONMENT: [&str; 4] = ["KUBECONFIG", "PATH", "RUST_BACKTRACE", "RUST_LOG"];
const OWN_FLAGS: [&str; 3] = ["--listener-hold-down", "--identity", "--port"];

fn template(cluster: &Cluster, object: &str) -> Result<PodSpec> {
    let path = "-o=jsonpath={.spec.template.spec}";
    let spec = cluster.kubectl(&["get", object, "-n", "highwire-system", path])?;
    Ok(serde_json::from_str(&spec)?)
}

/// A file of the process in /proc.
fn proc(program: &Program, file: &str) -> Result<String> {
    let pid = program.unit().pid().context("it does not run")?;
    Ok(fs::read_to_string(format!("/proc/{pid}/{file}"))?)
}

/// Its environment.
fn environment(program: &Program) -> Result<BTreeMap<String, String>> {
    let all = proc(program, "environ")?;
    let pairs = all.split('\0').filter_map(|pair| pair.split_once('='));
    Ok(pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect())
}

fn has_the_environment(program: &Program, container: &Container, node: &str) -> Result<()> {
    let mut has = environment(program)?;
    has.retain(|key, _| !OWN_ENVIRONMENT.contains(&key.as_str()));
    let pod = program.workload();
    let mut wanted = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let from = variable.value_from.as_ref();
        let field = from
            .and_then(|from| from.field_ref.as_ref())
            .context("no field")?;
        let value = match field.field_path.as_str() {
            "spec.nodeName" => node.to_owned(),
            "metadata.name" => pod.pod_name(),
            "metadata.namespace" => pod.install.namespace.clone(),
            // Whichever address it is.
            "status.podIP" => has.get(&variable.name).cloned().unwrap_or_default(),
            other => anyhow::bail!("the harness does not know {other}"),
        };
        wanted.insert(variable.name.clone(), value);
    }
    ensure!(has == wanted, "it has {has:?}, deploy/ says {wanted:?}");
    let address: std::net::IpAddr = has["POD_IP"].parse()?;
    ensure!(!address.is_loopback(), "{address}");
    Ok(())
}

/// The arguments of `deploy/` are valid, and the harness adds only its own.
fn has_the_arguments(program: &Program, container: &Container) -> Result<()> {
    let wanted: Vec<String> = container.args.clone().unwrap_or_default();
    let accepted = Command::new(program.binary())
        .args(&wanted)
        .arg("--version")
        .output()?;
    ensure!(
        accepted.status.success(),
        "{wanted:?}: {}",
        String::from_utf8_lossy(&accepted.stderr)
    );
    // Text instead of JSON: people read the logs of tests.
    ensure!(
        wanted == ["--log-format=json"],
        "nothing here runs with {wanted:?}"
    );
    for argument in proc(program, "cmdline")?
        .split('\0')
        .skip(1)
        .filter(|it| !it.is_empty())
    {
        let flag = argument.split('=').next().unwrap_or_default();
        ensure!(OWN_FLAGS.contains(&flag), "{argument} is not in deploy/");
    }
    Ok(())
}

/// The bits of `linux/capability.h`.
fn has_the_capabilities(program: &Program, container: &Container) -> Result<()> {
    let context = container
        .security_context
        .as_ref()
        .context("no securityContext")?;
    ensure!(context.allow_privilege_escalation == Some(false));
    let capabilities = context.capabilities.as_ref().context("no capabilities")?;
    ensure!(capabilities.drop.iter().flatten().eq(["ALL"]));
    let mut mask = 0_u64;
    for name in capabilities.add.iter().flatten() {
        mask |= match name.as_str() {
            "NET_ADMIN" => 1 << 12,
            other => anyhow::bail!("the harness does not know {other}"),
        };
    }
    let status = proc(program, "status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let has = u64::from_str_radix(field(set).context("no such field")?.trim(), 16)?;
        ensure!(has == mask, "{set} {has:x}, deploy/ says {mask:x}");
    }
    ensure!(field("NoNewPrivs:").map(str::trim) == Some("1"));
    Ok(())
}

/// Every probe is answered at the Pod's address, where a kubelet asks.
async fn answers_probes(program: &Program, container: &Container, cluster: &Cluster) -> Result<()> {
    let ports = container.ports.iter().flatten();
    let ports: BTreeMap<&str, i32> = ports
        .filter_map(|port| Some((port.name.as_deref()?, port.container_port)))
        .collect();
    let probes = [
        &container.startup_probe,
        &container.liveness_probe,
        &container.readiness_probe,
    ];
    let actions: Vec<&HTTPGetAction> = probes
        .into_iter()
        .flatten()
        .filter_map(|probe| probe.http_get.as_ref())
        .collect();
    let paths: BTreeSet<_> = actions.iter().filter_map(|it| it.path.as_deref()).collect();
    ensure!(paths.len() == 3, "start, liveness and readiness: {paths:?}");
    let address = environment(program)?["POD_IP"].parse()?;
    for action in actions {
        let k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(name) = &action.port
        else {
            anyhow::bail!("{:?} is not a name", action.port);
        };
        let to = SocketAddr::new(address, u16::try_from(ports[name.as_str()])?);
        let path = action.path.as_deref().unwrap_or("/");
        wait_for(&format!("{to}{path}"), LONG, || async {
            cluster.outside().http_text(to, path, SHORT)
        })
        .await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn programs_run_as_deploy_says() -> Result<()> {
    let (cluster, _scope) = web("asdeployed").await?;
    for (object, program, node) in [
        ("daemonset/highwire-agent", cluster.agent("n1")?, "n1"),
        (
            "deployment/highwire-controller",
            cluster.controller("c1")?,
            "n1",
        ),
    ] {
        let spec = template(&cluster, object)?;
        let [container] = spec.containers.as_slice() else {
            anyhow::bail!("more than one container");
        };
        has_the_environment(&program, container, node).context(object)?;
        has_the_arguments(&program, container).context(object)?;
        has_the_capabilities(&program, container).context(object)?;
        answers_probes(&program, container, &cluster)
            .await
            .context(object)?;
        let grace = spec.termination_grace_period_seconds;
        ensure!(
            grace == Some(program.grace().as_secs().cast_signed()),
            "{grace:?}"
        );
    }
    Ok(())
}

/// What a user of another registry applies is valid to a real API server.
#[apply(cluster_test)]
async fn manifests_for_another_registry_are_accepted() -> Result<()> {
    let (cluster, _scope) = web("manifests").await?;
    let printed = Command::new(checkout().join("hack/manifests"))
        .args(["--registry", "registry.example/team", "--tag", "v2"])
        .arg("--default-class=false")
        .output()?;
    ensure!(printed.status.success(), "{printed:?}");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("highwire.yaml");
    fs::write(&file, printed.stdout)?;
    let file = file.to_str().context("not UTF-8")?;
    // Validated as a real write, with all admission, and not stored.
    let applied = cluster.kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "-f",
        file,
    ])?;
    let objects = applied.lines().count();
    ensure!(objects > 15, "{applied}");
    ensure!(
        applied.contains("daemonset.apps/highwire-agent"),
        "{applied}"
    );
    Ok(())
}
