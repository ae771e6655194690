//! What becomes of a node: a reboot, another mode of kube-proxy, new tokens.
//!
//! On one cluster, which `host_firewalls.rs` shares, each test with nodes of its own: n1
//! reboots, n2's kube-proxy changes its mode, n3 and n4 get firewalls. What Pods a test
//! must not lose are on n5, which does not serve.

use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::sync::Weak;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{AMPLE, LONG, SHORT, Undo, all_answer, answers, ingress_is, refuses};
use highwire_e2e::lifecycle::{change_proxy_mode, power_off, power_on};
use highwire_e2e::{
    Cluster, FileCluster, FileSlot, Node, Pod, PrivateCluster, Program, ProxyMode, Scope, Svc,
    highwire, wait_for,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use macro_rules_attribute::apply;
use tokio::sync::Mutex;

static CLUSTER: FileSlot = Mutex::const_new(Weak::new());

/// The cluster of these tests: n1 to n4 serve.
pub(crate) async fn hosts() -> Result<FileCluster> {
    FileCluster::join(&CLUSTER, async {
        let cluster = PrivateCluster::up("hst", 5).await?;
        highwire::start(&cluster).await?;
        for node in ["n3", "n4"] {
            cluster.opt_in(node).await?;
            let agent = cluster.agent(node)?;
            agent.start(&[]).await?;
            agent.wait_ready(highwire::READY).await?;
        }
        Ok(cluster)
    })
    .await
}

/// A Pod `app=web` with TCP 8080 and UDP 5353.
pub(crate) async fn web_pod(scope: &Scope, name: &str, node: &str) -> Result<Pod> {
    let pod = scope.pod(name).on(node).label("app", "web");
    pod.tcp(8080).udp(5353).start().await
}

/// A dual-stack Service for those Pods, by TCP and UDP on one port, on these nodes.
pub(crate) async fn on_nodes(
    scope: &Scope,
    name: &str,
    port: u16,
    nodes: &[&str],
    policy: &str,
) -> Result<Svc> {
    let selector = format!("kubernetes.io/hostname in ({})", nodes.join(","));
    let service = scope.service(name).load_balancer().select("app", "web");
    let service = service.annotation("highwire.dev/node-selector", &selector);
    let service = service.spec("externalTrafficPolicy", policy.into());
    let service = service.dual_stack().tcp(port, 8080).udp(port, 5353);
    service.create().await
}

/// Waits until exactly these nodes' addresses are listed.
pub(crate) async fn lists(service: &Svc, nodes: &[&Node]) {
    let all = nodes.iter().flat_map(|node| node.addresses());
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = all.partition(|address| address.is_ipv4());
    let wanted: Vec<String> = v4.iter().chain(&v6).map(IpAddr::to_string).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    ingress_is(service, &wanted).await;
}

#[apply(cluster_test)]
async fn a_rebooted_node_leaves_and_comes_back_without_anything_old() -> Result<()> {
    let cluster = hosts().await?;
    let scope = Scope::new(&cluster, "reboot").await?;
    web_pod(&scope, "web-1", "n5").await?;
    let [kept, deleted, new] = [scope.free_port()?, scope.free_port()?, scope.free_port()?];
    let (n1, n2, client) = (cluster.node("n1")?, cluster.node("n2")?, cluster.outside());
    let service = on_nodes(&scope, "kept", kept, &["n1", "n2"], "Cluster").await?;
    let goes = on_nodes(&scope, "deleted", deleted, &["n1", "n2"], "Cluster").await?;
    for (service, port) in [(&service, kept), (&goes, deleted)] {
        lists(service, &[&n1, &n2]).await;
        answers(&client, n1.v4(port)).await;
    }
    let mut flow = client.udp_flow(n1.v4(kept))?;
    flow.ask(AMPLE)?;

    power_off(&cluster, &n1)?;
    lists(&service, &[&n2]).await;
    answers(&client, n2.v4(kept)).await;
    // It is away while things change.
    goes.delete().await?;
    let later = on_nodes(&scope, "new", new, &["n1", "n2"], "Cluster").await?;
    lists(&later, &[&n2]).await;

    power_on(&cluster, &n1).await?;
    let agent = cluster.agent("n1")?;
    agent.start(&[]).await?;
    if cluster.config().proxy_modes.has_any() {
        // kube-proxy takes longer to start: until then the node would not answer.
        wait_for("a report that kube-proxy is missing", LONG, || async {
            let report = cluster.kubectl(&["get", "lbn", "n1", "-oyaml"])?;
            ensure!(report.contains("reason: ServiceProxyMissing"), "{report}");
            Ok(())
        })
        .await;
        ensure!(
            service.ingress_ips().await?.len() == 2,
            "n1 is listed too early"
        );
        cluster.unit("kube-proxy-n1").start_again()?;
    }
    for (service, port) in [(&service, kept), (&later, new)] {
        lists(service, &[&n1, &n2]).await;
        for to in [n1.v4(port), n1.v6(port)] {
            answers(&client, to).await;
            all_answer(&["web-1"], || client.udp_ask(to, SHORT)).await;
        }
    }
    // The client that never stopped, with the source port of before.
    wait_for("an answer to the flow", LONG, || {
        let outcome = flow.ask(SHORT);
        async move { outcome }
    })
    .await;
    refuses(&client, n1.v4(deleted)).await;
    let table = n1
        .netns()
        .check(&["nft", "list", "table", "inet", "highwire"])?;
    ensure!(!table.contains(&deleted.to_string()), "{table}");
    Ok(())
}

/// The mode of kube-proxy that the node reports.
async fn reports_mode(cluster: &Cluster, node: &str, mode: &str) {
    wait_for(&format!("{node} to report {mode}"), LONG, || async {
        let line = cluster.kubectl(&["get", "lbn", node, "--no-headers"])?;
        ensure!(line.contains(mode) && line.contains("True"), "{line}");
        Ok(())
    })
    .await;
}

#[apply(cluster_test)]
async fn kube_proxy_may_change_its_mode_under_traffic() -> Result<()> {
    let cluster = hosts().await?;
    let scope = Scope::new(&cluster, "modes").await?;
    let pod = web_pod(&scope, "web-1", "n5").await?;
    let (n2, client) = (cluster.node("n2")?, cluster.outside());
    let port = scope.free_port()?;
    let service = on_nodes(&scope, "web", port, &["n2"], "Cluster").await?;
    lists(&service, &[&n2]).await;
    // iptables-legacy's programs under the names by which kube-proxy calls them.
    let legacy = cluster.state().path("legacy");
    std::fs::create_dir_all(&legacy)?;
    for name in ["iptables", "ip6tables"] {
        for part in ["", "-save", "-restore"] {
            let program = format!("/usr/sbin/{name}-legacy{part}");
            symlink(program, legacy.join(format!("{name}{part}")))?;
        }
    }

    let mut streams = Vec::new();
    for (mode, path) in [
        (ProxyMode::Nftables, None),
        (ProxyMode::Iptables, None),
        (ProxyMode::Nftables, None),
        (ProxyMode::Iptables, Some(legacy.as_path())),
    ] {
        for to in [n2.v4(port), n2.v6(port)] {
            answers(&client, to).await;
            streams.push(client.tcp_connect(to, AMPLE)?);
        }
        change_proxy_mode(&cluster, &n2, mode, path)?;
        reports_mode(&cluster, "n2", mode.as_str()).await;
        for to in [n2.v4(port), n2.v6(port)] {
            answers(&client, to).await;
            all_answer(&["web-1"], || client.udp_ask(to, SHORT)).await;
        }
        for stream in &mut streams {
            stream.say("after").context("an established connection")?;
        }
        lists(&service, &[&n2]).await;
    }
    let rules = n2.netns().check(&["iptables-legacy-save", "-t", "nat"])?;
    ensure!(
        rules.contains("KUBE-SERVICES"),
        "kube-proxy does not use it: {rules}"
    );

    // Somebody else's rules in it, beside kube-proxy's: a port of the host's own.
    let other = scope.free_port()?;
    let rule = |verb: &str| {
        format!(
            "iptables-legacy -w -t nat {verb} PREROUTING -p tcp --dport {other} \
             -j DNAT --to-destination {to}\n\
             iptables-legacy -w -t nat {verb} POSTROUTING -d {pod} -p tcp --dport 8080 \
             -j MASQUERADE",
            to = pod.at(8080),
            pod = pod.addresses()[0],
        )
    };
    let _rule = Undo::after_shell(n2.netns(), &rule("-I"), &rule("-D"))?;
    answers(&client, n2.v4(other)).await;
    answers(&client, n2.v4(port)).await;
    Ok(())
}

/// Waits until the node's agent has renewed its Lease for so long.
async fn renews_for(cluster: &Cluster, node: &str, time: Duration) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(cluster.client(), "highwire-system");
    let renewed = async || {
        let spec = leases.get(&format!("agent-{node}")).await?.spec;
        let time = spec.and_then(|spec| spec.renew_time);
        Ok::<_, anyhow::Error>(time.context("never renewed")?.0)
    };
    // An agent that has just become ready may not have one yet.
    let start = wait_for("its Lease", LONG, renewed).await;
    wait_for(
        &format!("{node} to go on for {time:?}"),
        time + LONG,
        || async {
            let so_far = renewed().await?.duration_since(start);
            ensure!(so_far.unsigned_abs() >= time, "{so_far:?}");
            Ok(())
        },
    )
    .await;
    Ok(())
}

/// Binds a new token of the program to a Pod like its own, under another name.
async fn replace_token(cluster: &Cluster, program: &Program) -> Result<()> {
    let workload = program.workload();
    let pods: Api<PodObject> = Api::namespaced(cluster.client(), &workload.install.namespace);
    let own = pods.get(&workload.pod_name()).await?;
    let pod = PodObject {
        metadata: ObjectMeta {
            name: Some(format!("{}-next", workload.pod_name())),
            ..ObjectMeta::default()
        },
        spec: own.spec,
        status: None,
    };
    let pod = pods.create(&PostParams::default(), &pod).await?;
    program.write_token(&pod).await
}

/// How long a program may go on with a token that it has read (kube's `TokenFile`).
const TOKEN_IS_READ_AGAIN: Duration = Duration::from_secs(60);

#[apply(cluster_test)]
async fn a_token_that_is_replaced_is_read_again() -> Result<()> {
    let cluster = hosts().await?;
    let scope = Scope::new(&cluster, "token").await?;
    web_pod(&scope, "web-1", "n5").await?;
    let n4 = cluster.node("n4")?;
    let mut programs = vec![cluster.agent("n4")?];
    for name in highwire::CONTROLLERS {
        programs.push(cluster.controller(name)?);
    }
    let mut old = Vec::new();
    for program in &programs {
        old.push(std::fs::read_to_string(program.token_file())?);
        replace_token(&cluster, program).await?;
    }
    // A kubelet replaces a token long before it ends, and so do we here.
    renews_for(&cluster, "n4", TOKEN_IS_READ_AGAIN).await?;
    for (program, token) in programs.iter().zip(&old) {
        let workload = program.workload();
        let pods: Api<PodObject> = Api::namespaced(cluster.client(), &workload.install.namespace);
        let now = DeleteParams::default().grace_period(0);
        pods.delete(&workload.pod_name(), &now).await?;
        let with_it = cluster.client_with(token).await?;
        wait_for("the old token to end", LONG, || async {
            match with_it.apiserver_version().await {
                Err(kube::Error::Api(status)) if status.code == 401 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    renews_for(&cluster, "n4", Duration::from_secs(6)).await?;
    let port = scope.free_port()?;
    let service = on_nodes(&scope, "web", port, &["n4"], "Cluster").await?;
    lists(&service, &[&n4]).await;
    all_answer(&["web-1"], || cluster.outside().udp_ask(n4.v4(port), SHORT)).await;
    Ok(())
}
