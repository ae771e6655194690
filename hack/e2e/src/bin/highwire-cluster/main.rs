//! Starts, stops and steers test clusters; `hack/cluster` runs it.

mod start;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use highwire_e2e::bed::pod::PodBuilder;
use highwire_e2e::cluster::relay;
use highwire_e2e::lab::state::{self, State};
use highwire_e2e::{
    Cluster, Config, Netns, Pod, Program, Programs as _, Unit, highwire, lifecycle,
};
use start::{Run, Up};

/// How long an upstream program may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// Kubernetes clusters of processes and network namespaces.
#[derive(Parser)]
#[command(name = "hack/cluster")]
struct Cli {
    /// The cluster's name.
    #[arg(long, global = true, default_value = "dev", env = "HIGHWIRE_CLUSTER")]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start a cluster; one of the same name is removed first.
    Up(Up),
    /// Start a cluster with Highwire, run a command on it, and remove it; the cluster ends
    /// with this process, whatever ends that.
    Run(Run),
    /// Remove a cluster and all that is left of it.
    Down,
    /// Print the path of the admin kubeconfig.
    Kubeconfig,
    /// List the clusters on this machine.
    List,
    /// List a cluster's processes, with their memory.
    Ps,
    /// Print what a process said, by the name `ps` shows.
    Logs {
        /// The process.
        process: String,
    },
    /// Run kubectl as admin.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// kubectl's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command in a namespace.
    Exec {
        /// `client`, `cp`, `fabric`, a node's name, or `pod/NAMESPACE/NAME`.
        role: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Label nodes so that they serve.
    OptIn {
        /// The nodes' names.
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Remove that label.
    OptOut {
        /// The nodes' names.
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Apply deploy/, opt n1 and n2 in, and start their agents and two controllers.
    Highwire,
    /// Steer the agent of a node.
    Agent(Steer),
    /// Steer a controller (c1, c2, …).
    Controller(Steer),
    /// Steer any other process, such as kube-apiserver, by the name `ps` shows.
    Process(Steer),
    /// Add and remove Pods with an echo server.
    #[command(subcommand)]
    Pod(PodAction),
    /// Relay the API server to the host's loopback (used by `up`).
    #[command(hide = true)]
    Relay {
        #[arg(long)]
        netns: PathBuf,
        #[arg(long)]
        target: SocketAddr,
        #[arg(long)]
        port_file: PathBuf,
    },
}

#[derive(Args)]
struct Steer {
    /// What to do.
    verb: Verb,
    /// The node, the controller or the process.
    who: String,
    /// Additional flags for the program (with start).
    #[arg(last = true)]
    flags: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Verb {
    /// Start it and wait until it is ready.
    Start,
    /// End it by SIGTERM.
    Stop,
    /// End it by SIGKILL.
    Kill,
    /// Stop and start it with the same flags.
    Restart,
}

#[derive(Subcommand)]
enum PodAction {
    /// Add a Pod and report it ready.
    Add {
        /// Its name.
        pod: String,
        /// Its Kubernetes namespace.
        #[arg(long, default_value = "default")]
        namespace: String,
        /// Its node.
        #[arg(long, default_value = "n1")]
        node: String,
        /// Labels, as key=value; `app=<name>` if none is given.
        #[arg(long, value_parser = key_value)]
        label: Vec<(String, String)>,
        /// TCP ports.
        #[arg(long, value_delimiter = ',')]
        tcp: Vec<u16>,
        /// UDP ports.
        #[arg(long, value_delimiter = ',')]
        udp: Vec<u16>,
        /// Run in the node's own namespace.
        #[arg(long)]
        host_network: bool,
        /// Claim the ports as hostPorts.
        #[arg(long)]
        host_port: bool,
    },
    /// Remove Pods.
    Rm {
        /// Their names.
        #[arg(required = true)]
        pods: Vec<String>,
        /// Their Kubernetes namespace.
        #[arg(long, default_value = "default")]
        namespace: String,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.action {
        // Before any other thread exists: it changes its namespace.
        Action::Relay {
            netns,
            target,
            port_file,
        } => relay::run(&netns, target, &port_file),
        action => tokio::runtime::Runtime::new()
            .context("start a runtime")
            .and_then(|runtime| runtime.block_on(act(&cli.name, action))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hack/cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn act(name: &str, action: Action) -> Result<()> {
    match action {
        Action::Up(arguments) => return start::up(name, arguments).await,
        Action::Run(arguments) => return start::run(name, arguments).await,
        Action::Down => {
            let held = state::lock(name)?;
            lifecycle::down(name)?;
            state::unlock(name, held);
            return Ok(());
        }
        Action::List => {
            for name in State::list() {
                match Config::read(&State::new(&name)?) {
                    Ok(config) => println!(
                        "{name}\t{} nodes\t{}\t{:?}",
                        config.nodes,
                        config.proxy_modes.as_str(),
                        config.ip_family
                    ),
                    Err(_) => {
                        println!("{name}\tnot up; hack/cluster down --name {name} removes it")
                    }
                }
            }
            return Ok(());
        }
        // `logs` of a cluster that failed to come up is what one wants most.
        Action::Logs { process } => {
            print!("{}", Unit::new(&State::new(name)?, process).log());
            return Ok(());
        }
        _ => {}
    }
    let cluster = Cluster::open(name).await?;
    match action {
        Action::Kubeconfig => println!("{}", cluster.kubeconfig().display()),
        Action::Ps => ps(&cluster),
        Action::Kubectl { arguments } => return kubectl(&cluster, &arguments),
        Action::Exec { role, command } => return exec(&cluster, &role, &command),
        Action::OptIn { nodes } => {
            for node in nodes {
                cluster.opt_in(&node).await?;
            }
        }
        Action::OptOut { nodes } => {
            for node in nodes {
                cluster.opt_out(&node).await?;
            }
        }
        Action::Highwire => highwire::start(&cluster).await?,
        Action::Agent(steering) => steer(&cluster.agent(&steering.who)?, &steering).await?,
        Action::Controller(steering) => {
            steer(&cluster.controller(&steering.who)?, &steering).await?;
        }
        Action::Process(steering) => process(&cluster.unit(&steering.who), steering.verb)?,
        Action::Pod(action) => pod(&cluster, action).await?,
        Action::Up(_)
        | Action::Run(_)
        | Action::Down
        | Action::List
        | Action::Logs { .. }
        | Action::Relay { .. } => {}
    }
    Ok(())
}

async fn steer(program: &Program, steering: &Steer) -> Result<()> {
    let flags: Vec<&str> = steering.flags.iter().map(String::as_str).collect();
    match steering.verb {
        Verb::Start => program.start(&flags).await?,
        Verb::Stop => return program.stop(),
        Verb::Kill => return program.kill(),
        Verb::Restart => program.restart()?,
    }
    program.wait_ready(Duration::from_secs(30)).await
}

fn process(unit: &Unit, verb: Verb) -> Result<()> {
    match verb {
        Verb::Start => unit.start_again(),
        Verb::Stop => unit.stop(STOP_LIMIT),
        Verb::Kill => unit.kill(),
        // Not SIGTERM: kube-apiserver waits a minute for its watchers to leave.
        Verb::Restart => {
            unit.kill()?;
            unit.start_again()
        }
    }
}

async fn pod(cluster: &Cluster, action: PodAction) -> Result<()> {
    match action {
        PodAction::Add {
            pod,
            namespace,
            node,
            label,
            tcp,
            udp,
            host_network,
            host_port,
        } => {
            let mut builder = PodBuilder::new(cluster, &namespace, &pod).on(&node);
            for (key, value) in &label {
                builder = builder.label(key, value);
            }
            builder = tcp.into_iter().fold(builder, PodBuilder::tcp);
            builder = udp.into_iter().fold(builder, PodBuilder::udp);
            if host_network {
                builder = builder.host_network();
            }
            if host_port {
                builder = builder.host_port();
            }
            let pod = builder.start().await?;
            let addresses: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
            println!(
                "{} on {} at {}",
                pod.name(),
                pod.node(),
                addresses.join(", ")
            );
        }
        PodAction::Rm { pods, namespace } => {
            for pod in pods {
                Pod::find(cluster, &namespace, &pod)?
                    .delete(cluster)
                    .await?;
            }
        }
    }
    Ok(())
}

fn ps(cluster: &Cluster) {
    println!("{:<32} {:>8} {:>10}", "PROCESS", "PID", "RSS");
    for unit in Unit::list(cluster.state()) {
        match (unit.pid(), unit.rss_kib()) {
            (Some(pid), Some(rss)) => {
                println!("{:<32} {pid:>8} {:>6} MiB", unit.name(), rss / 1024)
            }
            _ => println!("{:<32} {:>8}", unit.name(), "ended"),
        }
    }
}

/// Becomes kubectl, with the caller's terminal and folder.
fn kubectl(cluster: &Cluster, arguments: &[String]) -> Result<()> {
    let error = Command::new(cluster.config().controlplane.join("kubectl"))
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("KUBECACHEDIR", cluster.state().path("kubectl-cache"))
        .exec();
    Err(error).context("start kubectl")
}

/// Becomes the command, in the namespace.
fn exec(cluster: &Cluster, role: &str, command: &[String]) -> Result<()> {
    let netns: Netns = match role.strip_prefix("pod/").map(|pod| pod.split_once('/')) {
        None => cluster.netns(role)?,
        Some(Some((namespace, name))) => Pod::find(cluster, namespace, name)?.netns(),
        Some(None) => bail!("a Pod's role is pod/NAMESPACE/NAME"),
    };
    let error = Command::new("nsenter")
        .arg(format!("--net={}", netns.path()?.display()))
        .args(command)
        .exec();
    Err(error).context("start nsenter")
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is not key=value"))
}
