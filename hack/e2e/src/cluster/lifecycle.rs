//! A cluster's beginning and end.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::Api;

use crate::cluster::cilium::{self, Cilium};
use crate::cluster::config::{Config, Containers, NodeKind, ProxyMode};
use crate::cluster::handle::{self, Cluster, Node};
use crate::cluster::layout::PROXY_HEALTH_PORT;
use crate::cluster::{controlplane, kubelet, kubeproxy, network, nodes, pki};
use crate::lab::http::http_text;
use crate::lab::init::{Init, Lifeline};
use crate::lab::machine::{self, Machine};
use crate::lab::netns::Netns;
use crate::lab::requirements;
use crate::lab::state::{State, write_json};
use crate::lab::unit::{self, Spec, Unit};
use crate::lab::wait::{is_slow, scaled, try_wait_for};

/// How long each step of `up` may take on a slow machine.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// How long the processes of a cluster may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Builds a cluster; what an earlier one of its name left is removed first.
/// Reports progress to `say`. The cluster ends when the lifeline is dropped, or when the
/// process that has it ends; [`down`] removes what was written down about it, too.
pub async fn up(config: &Config, say: impl Fn(&str)) -> Result<(Cluster, Lifeline)> {
    requirements::check()?;
    config.check()?;
    down(&config.name)?;
    let state = State::new(&config.name)?;
    state.create(&["pki", "etcd", "units", "log", "pods"])?;
    let lifeline = Init::start(&state)?;

    say("networks");
    let (fabric, family) = (Netns::of(&state, "fabric"), config.ip_family);
    network::fabric_and_client(&fabric, &Netns::of(&state, "client"))?;
    network::control_plane(&fabric, &Netns::of(&state, "cp"), config.nodes, family)?;
    for index in 1..=config.nodes {
        let netns = Netns::of(&state, format!("n{index}"));
        network::node(&fabric, &netns, index, config.nodes, family)?;
    }

    say("certificates");
    let node_names: Vec<String> = (1..=config.nodes).map(|it| format!("n{it}")).collect();
    pki::create(&state, &node_names)?;
    let inside = controlplane::api_url(family);
    let components = ["kube-controller-manager", "kube-scheduler", "kube-proxy"];
    let nodes = node_names.iter().map(String::as_str);
    for who in components.into_iter().chain(nodes) {
        let path = state.path(format!("pki/{who}.kubeconfig"));
        pki::certificate_kubeconfig(&state, &path, &inside, who)?;
    }

    say("etcd and kube-apiserver");
    let etcd = start(&state, controlplane::etcd(&state, config))?;
    let apiserver = start(&state, controlplane::apiserver(&state, config)?)?;
    let relay = start(&state, controlplane::relay(&state, config)?)?;
    let port_file = state.path("relay-port");
    let port = alive("the relay", &[&relay], || async {
        Ok::<u16, anyhow::Error>(fs::read_to_string(&port_file)?.trim().parse()?)
    })
    .await?;
    let outside = format!("https://127.0.0.1:{port}");
    pki::certificate_kubeconfig(&state, &handle::kubeconfig(&state), &outside, "admin")?;
    let client = handle::client(&state).await?;
    alive(
        "kube-apiserver to be ready",
        &[&apiserver, &etcd, &relay],
        || async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok::<_, anyhow::Error>(client.request_text(request).await?)
        },
    )
    .await?;

    say("kube-controller-manager, nodes and kube-proxies");
    let controllers = start(&state, controlplane::controller_manager(&state, config))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let controllers_work = async || {
        let works = || accounts.get("default");
        alive("kube-controller-manager to work", &[&controllers], works).await
    };
    let proxy_works = async |index: u8, proxy: &Unit| {
        let netns = Netns::of(&state, format!("n{index}"));
        let works = || async { proxy_health(&netns, config) };
        alive(proxy.name(), &[proxy], works).await
    };
    // All at once they take a slow machine longer than they wait for a TLS handshake.
    if is_slow() {
        controllers_work().await?;
    }
    match &config.node_kind {
        NodeKind::Bare => {
            for index in 1..=config.nodes {
                nodes::register(&client, index, family).await?;
            }
        }
        NodeKind::Kubelet(containers) => {
            start(&state, controlplane::scheduler(&state, config))?;
            for index in 1..=config.nodes {
                boot(&state, config, containers, index).await?;
            }
        }
    }
    let mut proxies = Vec::new();
    for index in 1..=config.nodes {
        let Some(mode) = config.proxy_modes.on(index) else {
            continue;
        };
        let proxy = start(&state, kubeproxy::spec(&state, config, index, mode)?)?;
        if is_slow() {
            proxy_works(index, &proxy).await?;
        }
        proxies.push((index, proxy));
    }
    controllers_work().await?;
    for (index, proxy) in &proxies {
        proxy_works(*index, proxy).await?;
        if matches!(config.node_kind, NodeKind::Kubelet(_)) {
            let kubelet = Unit::new(&state, format!("kubelet-n{index}"));
            let ready = || nodes::ready(&client, *index);
            alive(kubelet.name(), &[&kubelet], ready).await?;
        }
    }

    if let Some(cilium) = &config.cilium {
        say("Cilium");
        start_cilium(&state, config, cilium).await?;
    }

    // Last of all: who finds it finds a cluster that works.
    write_json(&state.path("cluster.json"), config)?;
    Ok((Cluster::open(&config.name).await?, lifeline))
}

/// Ends every process of the cluster and removes its namespaces and its state.
/// Works on what is there: half a cluster, a crashed one, none.
pub fn down(name: &str) -> Result<()> {
    let state = State::new(name)?;
    if let Some(init) = Init::of(&state) {
        // Nothing in a test cluster is worth a goodbye.
        init.kill();
        let deadline = Instant::now() + scaled(END_LIMIT);
        // It ends after all others.
        while init.runs() {
            if Instant::now() > deadline {
                // A test that still runs may have ended children that it has not collected.
                let running = Unit::list(&state).into_iter().find(Unit::is_running);
                ensure!(
                    running.is_none(),
                    "cluster {name} does not end: {running:?}"
                );
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    machine::remove_all_cgroups(&state)?;
    state.remove()
}

/// Removes what clusters left that ended without anybody to remove it, such as those of
/// a test run that was killed.
pub fn sweep() -> Result<()> {
    for name in State::list() {
        let state = State::new(&name)?;
        if Init::is_gone(&state) {
            machine::remove_all_cgroups(&state)?;
            state.remove()?;
        }
    }
    Ok(())
}

/// Cuts a node's power: its processes end, and all that its kernel had is lost. On a bare
/// node, Pods must have been stopped before.
pub fn power_off(cluster: &Cluster, node: &Node) -> Result<()> {
    // The cable first, so that nothing that ends can say so.
    let cable = format!("link del {}", node.name);
    cluster.netns("fabric")?.ip_batch(&cable)?;
    match cluster.config().node_kind {
        NodeKind::Bare => {
            for program in ["agent", "kube-proxy"] {
                cluster.unit(&format!("{program}-{}", node.name)).kill()?;
            }
        }
        NodeKind::Kubelet(_) => {
            node.machine().power_off()?;
            // Those that were started on it have ended, and are waited for here.
            for program in ["kubelet", "containerd", "kube-proxy"] {
                cluster.unit(&format!("{program}-{}", node.name)).kill()?;
            }
        }
    }
    node.netns().delete()
}

/// Boots it again, with addresses and routes. A bare node is without a process then; on
/// another containerd and the kubelet start, and kube-proxy is the caller's to start.
pub async fn power_on(cluster: &Cluster, node: &Node) -> Result<()> {
    let (fabric, config) = (cluster.netns("fabric")?, cluster.config());
    network::node(
        &fabric,
        node.netns(),
        node.index,
        config.nodes,
        config.ip_family,
    )?;
    match &config.node_kind {
        NodeKind::Bare => Ok(()),
        NodeKind::Kubelet(containers) => {
            boot(cluster.state(), config, containers, node.index).await
        }
    }
}

/// Starts Cilium on every node and waits until it works.
async fn start_cilium(state: &State, config: &Config, cilium: &Cilium) -> Result<()> {
    let definitions = cilium::definitions(cilium).display().to_string();
    let apply = ["apply", "--server-side", "-f", &definitions];
    handle::kubectl(state, config, &apply)?;
    let mut agents = Vec::new();
    for index in 1..=config.nodes {
        let node = format!("n{index}");
        let mounts = start(state, cilium::mounts(state, cilium, index)?)?;
        alive(mounts.name(), &[&mounts], || async {
            cilium::has_mounts(state, &node)
        })
        .await?;
        agents.push((
            start(state, cilium::agent(state, config, cilium, index)?)?,
            node,
        ));
    }
    for (agent, node) in &agents {
        let answers = || async { cilium::answers(state, cilium, node) };
        alive(agent.name(), &[agent], answers).await?;
    }
    Ok(())
}

/// Switches the machine of a node on and starts containerd and the kubelet. The first time,
/// containerd imports the images.
async fn boot(state: &State, config: &Config, containers: &Containers, index: u8) -> Result<()> {
    let node = format!("n{index}");
    let machine = Machine::of(&Netns::of(state, &node));
    let first = !machine.folder().exists();
    machine.boot()?;
    let containerd = start(
        state,
        kubelet::containerd(state, config, containers, index)?,
    )?;
    alive(containerd.name(), &[&containerd], || async {
        kubelet::containerd_answers(state, containers, &node)
    })
    .await?;
    if first {
        kubelet::import_images(state, containers, &node)?;
    }
    start(state, kubelet::kubelet(state, config, index)?).map(drop)
}

/// Ends a node's kube-proxy, if it has one, and starts one in that mode, which finds its
/// programs in the folders of `path` first.
pub fn change_proxy_mode(
    cluster: &Cluster,
    node: &Node,
    mode: ProxyMode,
    path: Option<&Path>,
) -> Result<()> {
    let (state, config) = (cluster.state(), cluster.config());
    let mut spec = kubeproxy::spec(state, config, node.index, mode)?;
    if let Some(path) = path {
        spec = spec.env("PATH", format!("{}:{}", path.display(), unit::PATH));
    }
    cluster.unit(&spec.name).stop(STEP_LIMIT)?;
    start(state, spec).map(drop)
}

fn start(state: &State, spec: Spec) -> Result<Unit> {
    let name = spec.name.clone();
    Unit::spawn(state, spec).with_context(|| format!("start {name}"))
}

/// Waits for `poll`, but not when one of the processes it depends on has ended;
/// fails with their last words.
async fn alive<T, E, F>(what: &str, units: &[&Unit], mut poll: impl FnMut() -> F) -> Result<T>
where
    E: std::fmt::Debug,
    F: Future<Output = Result<T, E>>,
{
    let outcome = try_wait_for(what, STEP_LIMIT, || {
        let dead = units.iter().find(|unit| !unit.is_running());
        let polled = poll();
        async move {
            match dead {
                Some(unit) => Ok(Err(unit.check_running())),
                None => polled.await.map(Ok),
            }
        }
    })
    .await;
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(dead)) => Err(dead.err().unwrap_or_else(|| anyhow::anyhow!("{what}"))),
        Err(late) => {
            let tails: Vec<String> = units.iter().map(|unit| unit.tail(20)).collect();
            Err(late.context(tails.join("\n")))
        }
    }
}

/// kube-proxy answers 200 after its first sync.
fn proxy_health(netns: &Netns, config: &Config) -> Result<()> {
    let host: std::net::IpAddr = match config.ip_family.has_v4() {
        true => [127, 0, 0, 1].into(),
        false => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let to = std::net::SocketAddr::new(host, PROXY_HEALTH_PORT);
    netns.run(|| http_text(to, "/healthz", Duration::from_secs(1)))?;
    Ok(())
}
