//! Starting a cluster, to stay or for a command's time.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use highwire_e2e::bed::test::KEEP;
use highwire_e2e::cluster::cilium::{Cilium, HostRouting, Routing};
use highwire_e2e::cluster::handle::ENV;
use highwire_e2e::lab::init::Lifeline;
use highwire_e2e::lab::state::{self, State};
use highwire_e2e::{
    Cluster, Config, Containers, IpFamily, NodeKind, ProxyModes, ProxySync, highwire, lifecycle,
};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Bytes of stack for each thread of a test.
const STACK: usize = 16 << 20;

#[derive(Args)]
pub(crate) struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// The kube-proxies' mode; mixed is nftables on every other node, with none there are no
    /// kube-proxies.
    #[arg(long, value_enum, default_value = "iptables")]
    proxy_mode: ProxyModes,
    /// The shortest time between two syncs of a kube-proxy, 100ms if not given; upstream's
    /// default is 1s.
    #[arg(long)]
    proxy_min_sync: Option<String>,
    /// Address families of nodes, Pods and Services.
    #[arg(long, value_enum, default_value = "dual")]
    ip_family: IpFamily,
    /// Nodes with kubelets and containerd, whose Pods run images.
    #[arg(long)]
    kubelet: bool,
    /// Folder of the upstream programs, as hack/build-controlplane prints it.
    #[arg(long, env = "HIGHWIRE_CONTROLPLANE")]
    controlplane: PathBuf,
    /// Folder of containerd, as hack/build-containerd prints it.
    #[arg(long, env = "HIGHWIRE_CONTAINERD", required_if_eq("kubelet", "true"))]
    containerd: Option<PathBuf>,
    /// Folder of archives of images that the nodes import, as hack/build-images prints it.
    #[arg(long, env = "HIGHWIRE_IMAGES", required_if_eq("kubelet", "true"))]
    images: Option<PathBuf>,
    /// Cilium connects Pods and does kube-proxy's work: folder of its programs, as
    /// hack/build-cilium prints it.
    #[arg(long)]
    cilium: Option<PathBuf>,
    /// How Cilium leads packets of Pods out of a node.
    #[arg(long, value_enum, default_value = "legacy")]
    host_routing: HostRouting,
    /// How Cilium's nodes send packets to each other's Pods.
    #[arg(long, value_enum, default_value = "native")]
    routing: Routing,
    /// An additional flag of Cilium's agents.
    #[arg(long, allow_hyphen_values = true)]
    cilium_flag: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Run {
    #[command(flatten)]
    cluster: Up,
    /// Keep the cluster if the command fails, and what failed tests used.
    #[arg(long)]
    keep: bool,
    /// The command; HIGHWIRE_CLUSTER names the cluster to it.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Starts a cluster that stays until `down`.
pub(crate) async fn up(name: &str, arguments: Up) -> Result<()> {
    let (_, lifeline) = start(name, arguments, &mut Interruption::new()?).await?;
    lifeline.detach()?;
    println!(
        "export KUBECONFIG={}",
        State::new(name)?.path("kubeconfig").display()
    );
    Ok(())
}

/// Starts a cluster with Highwire for the time that a command takes.
pub(crate) async fn run(name: &str, arguments: Run) -> Result<()> {
    let mut interruption = Interruption::new()?;
    let (cluster, lifeline) = start(name, arguments.cluster, &mut interruption).await?;
    let mut command = Command::new("setpriv");
    // It must not outlive us; and what it starts ends with the cluster.
    command.args(["--pdeathsig", "KILL"]);
    command.args(&arguments.command).env(ENV, name);
    // A test polls its futures on its thread's stack, which those of debug builds exceed.
    command.env("RUST_MIN_STACK", STACK.to_string());
    if arguments.keep {
        command.env(KEEP, "1");
    }
    let outcome = tokio::select! {
        outcome = with_highwire(&cluster, &mut command) => outcome,
        error = interruption.comes() => Err(error),
    };
    if outcome.is_err() && arguments.keep {
        lifeline.detach()?;
        eprintln!(
            "kept: cluster {name}; hack/cluster --name {name} --help, and \
             hack/cluster --name {name} down when you are done"
        );
        return outcome;
    }
    let held = state::lock(name)?;
    lifecycle::down(name)?;
    state::unlock(name, held);
    outcome
}

async fn with_highwire(cluster: &Cluster, command: &mut Command) -> Result<()> {
    highwire::start(cluster).await?;
    let child = command.kill_on_drop(true).spawn();
    let status = child.context("start the command")?.wait().await?;
    ensure!(status.success(), "the command failed: {status}");
    Ok(())
}

/// Starts a cluster; if that fails or is interrupted, nothing of it is left.
async fn start(
    name: &str,
    arguments: Up,
    interruption: &mut Interruption,
) -> Result<(Cluster, Lifeline)> {
    let tools = std::env::current_exe()?;
    let node_kind = match (arguments.kubelet, arguments.containerd, arguments.images) {
        (true, Some(containerd), Some(images)) => NodeKind::Kubelet(Containers {
            containerd: std::path::absolute(containerd)?,
            images: std::path::absolute(images)?,
        }),
        _ => NodeKind::Bare,
    };
    let config = Config {
        name: name.to_owned(),
        nodes: arguments.nodes,
        node_kind,
        proxy_modes: arguments.proxy_mode,
        cilium: match arguments.cilium {
            Some(programs) => Some(Cilium {
                programs: std::path::absolute(programs)?,
                host_routing: arguments.host_routing,
                routing: arguments.routing,
                flags: arguments.cilium_flag,
            }),
            None => None,
        },
        ip_family: arguments.ip_family,
        proxy_knows_pods: true,
        proxy_sync: match arguments.proxy_min_sync {
            Some(min) => ProxySync {
                min,
                ..ProxySync::default()
            },
            None => ProxySync::default(),
        },
        controlplane: std::path::absolute(arguments.controlplane)?,
        tools: tools.parent().context("where am I?")?.to_owned(),
    };
    lifecycle::sweep()?;
    let held = state::lock(name)?;
    let began = Instant::now();
    let say = |step: &str| {
        eprintln!(
            "cluster {name}: {:5.1} s  {step}",
            began.elapsed().as_secs_f32()
        )
    };
    let outcome = tokio::select! {
        outcome = lifecycle::up(&config, say) => outcome,
        error = interruption.comes() => Err(error),
    };
    match outcome {
        Ok(started) => {
            say("ready");
            Ok(started)
        }
        Err(error) => {
            lifecycle::down(name).context("clean up after a failure")?;
            state::unlock(name, held);
            Err(error)
        }
    }
}

/// Ctrl-C or SIGTERM.
struct Interruption {
    interrupt: Signal,
    terminate: Signal,
}

impl Interruption {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn comes(&mut self) -> anyhow::Error {
        tokio::select! {
            _ = self.interrupt.recv() => anyhow::anyhow!("interrupted"),
            _ = self.terminate.recv() => anyhow::anyhow!("terminated"),
        }
    }
}
