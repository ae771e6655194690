//! Our own programs in a cluster: an agent per node, and controllers.
//!
//! They run as their containers would: with a token of the ServiceAccount that
//! `deploy/` creates, bound to a Pod object of theirs, with no more rights than it has,
//! and with the container's capabilities only.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;

use crate::cluster::controlplane::{api_address, api_url};
use crate::cluster::handle::{Cluster, Node};
use crate::cluster::layout::{AGENT_PORT, API_PORT, CONTROLLER_PORT};
use crate::cluster::pki::token_kubeconfig;
use crate::faulty_api::FaultyApi;
use crate::highwire::token;
use crate::highwire::workload::{Install, Kind, Workload};
use crate::lab::http::{ConnectError, http_text};
use crate::lab::netns::Netns;
use crate::lab::unit::{Spec, Unit};
use crate::lab::wait::{is_slow, scaled, try_wait_for};

/// The label by which a node opts in.
const ENABLED: &str = "highwire.dev/enabled";
/// Capabilities of the agent's container, in setpriv's words; keep equal to deploy/.
pub const AGENT_CAPABILITIES: &[&str] = &["+net_admin"];
/// Capabilities of the controller's container: none.
pub const CONTROLLER_CAPABILITIES: &[&str] = &[];
/// `--nft-timeout` by default.
const NFT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a program may take to end after SIGTERM: terminationGracePeriodSeconds.
const GRACE: Duration = Duration::from_secs(60);

/// An agent or a controller: not started, running or ended.
#[derive(Clone)]
pub struct Program {
    cluster: Cluster,
    unit: Unit,
    netns: Netns,
    workload: Workload,
    capabilities: &'static [&'static str],
    binary: PathBuf,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    admin: SocketAddr,
    /// The API server's URL.
    api: String,
}

/// Highwire's programs on a cluster, and the nodes they serve on.
pub trait Programs {
    /// The agent of a node.
    fn agent(&self, node: &str) -> Result<Program>;
    /// A controller; `name` is `c1`, `c2`, … and becomes its identity.
    fn controller(&self, name: &str) -> Result<Program>;
    /// Labels the node so that it serves.
    fn opt_in(&self, node: &str) -> impl Future<Output = Result<()>>;
    /// Removes that label.
    fn opt_out(&self, node: &str) -> impl Future<Output = Result<()>>;
}

impl Programs for Cluster {
    fn agent(&self, node: &str) -> Result<Program> {
        Ok(Program::agent(self, &self.node(node)?))
    }

    fn controller(&self, name: &str) -> Result<Program> {
        Program::controller(self, name)
    }

    async fn opt_in(&self, node: &str) -> Result<()> {
        self.label_node(node, ENABLED, Some("true")).await
    }

    async fn opt_out(&self, node: &str) -> Result<()> {
        self.label_node(node, ENABLED, None).await
    }
}

impl Program {
    fn agent(cluster: &Cluster, node: &Node) -> Self {
        // Many tests wait until a listener's port is free again.
        let mut argv = vec!["--listener-hold-down=2s".to_owned()];
        if cluster.config().proxy_modes.on(node.index).is_none() {
            argv.push("--service-proxy=none".into());
        }
        if is_slow() {
            let timeout = scaled(NFT_TIMEOUT).as_secs();
            argv.push(format!("--nft-timeout={timeout}s"));
        }
        Self {
            cluster: cluster.clone(),
            unit: cluster.unit(&format!("agent-{}", node.name)),
            netns: node.netns().clone(),
            workload: Workload::new(Kind::Agent, &node.name, &node.name),
            capabilities: AGENT_CAPABILITIES,
            binary: binary(cluster, "HIGHWIRE_AGENT", "highwire-agent"),
            argv,
            env: vec![
                ("NODE_NAME".into(), node.name.clone()),
                ("POD_IP".into(), node.addresses()[0].to_string()),
            ],
            admin: local(cluster, AGENT_PORT),
            api: api_url(cluster.config().ip_family),
        }
    }

    fn controller(cluster: &Cluster, name: &str) -> Result<Self> {
        let number = name
            .strip_prefix('c')
            .and_then(|number| number.parse::<u16>().ok());
        let Some(number @ 1..=50) = number else {
            bail!("controllers are called c1 to c50, not {name:?}");
        };
        let (port, family) = (CONTROLLER_PORT + number - 1, cluster.config().ip_family);
        Ok(Self {
            cluster: cluster.clone(),
            unit: cluster.unit(&format!("controller-{name}")),
            netns: cluster.netns("cp")?,
            workload: Workload::new(Kind::Controller, name, "n1"),
            capabilities: CONTROLLER_CAPABILITIES,
            binary: binary(cluster, "HIGHWIRE_CONTROLLER", "highwire-controller"),
            argv: vec![format!("--identity={name}"), format!("--port={port}")],
            env: vec![("POD_IP".into(), api_address(family).ip().to_string())],
            admin: local(cluster, port),
            api: api_url(family),
        })
    }

    /// The same in an installation under another namespace or other names.
    pub fn installed_as(mut self, install: &Install) -> Self {
        self.workload.install = install.clone();
        self
    }

    /// The same, run from another program file.
    pub fn run_from(mut self, binary: PathBuf) -> Self {
        self.binary = binary;
        self
    }

    /// The same behind a broken network.
    pub fn through(mut self, faulty: &FaultyApi) -> Self {
        self.api = faulty.url();
        self
    }

    /// The same with a variable in its environment.
    pub fn with_env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// The same with these arguments in place of the usual ones; for a program that does
    /// not know those.
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.argv = arguments.iter().map(ToString::to_string).collect();
        self
    }

    /// Its Pod and what owns that.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// How long it may take to end.
    pub fn grace(&self) -> Duration {
        GRACE
    }

    /// The path of its program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Starts it with additional flags; does not wait until it is ready.
    pub async fn start(&self, flags: &[&str]) -> Result<()> {
        ensure!(
            self.binary.exists(),
            "{} does not exist: cargo build --workspace, or point HIGHWIRE_AGENT and \
             HIGHWIRE_CONTROLLER at the programs",
            self.binary.display()
        );
        let kubeconfig = self.kubeconfig().await?;
        let mut argv = vec![
            "setpriv".to_owned(),
            "--no-new-privs".into(),
            "--inh-caps=-all".into(),
        ];
        let mut bounding = vec!["-all"];
        bounding.extend(self.capabilities);
        argv.push(format!("--bounding-set={}", bounding.join(",")));
        argv.push(self.binary.display().to_string());
        argv.extend(self.argv.iter().cloned());
        argv.extend(flags.iter().map(ToString::to_string));
        let mut spec = Spec::new(self.unit.name(), &self.netns, argv)
            .env("KUBECONFIG", kubeconfig.display().to_string())
            .env("POD_NAME", self.workload.pod_name())
            .env("POD_NAMESPACE", &self.workload.install.namespace)
            .env("RUST_BACKTRACE", "1");
        spec.env.extend(self.env.iter().cloned());
        if let Ok(level) = std::env::var("HIGHWIRE_LOG") {
            spec = spec.env("RUST_LOG", level);
        }
        Unit::spawn(self.cluster.state(), spec)?;
        Ok(())
    }

    /// Waits until `/readyz` answers 200; fails early, with its last words, if it ends.
    pub async fn wait_ready(&self, limit: Duration) -> Result<()> {
        let what = format!("{} to be ready", self.unit.name());
        let outcome = try_wait_for(&what, limit, || async {
            match self.unit.is_running() {
                true => self
                    .get("/readyz")
                    .map(Ok)
                    .map_err(|error| error.to_string()),
                false => Ok(Err(())),
            }
        })
        .await;
        match outcome {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(())) => self.unit.check_running(),
            Err(error) => Err(error.context(self.unit.tail(20))),
        }
    }

    /// Ends it by SIGTERM and waits; not ending in time is an error.
    pub fn stop(&self) -> Result<()> {
        self.unit.stop(GRACE)
    }

    /// Ends it by SIGKILL, as a crash would.
    pub fn kill(&self) -> Result<()> {
        self.unit.kill()
    }

    /// Stops it and starts it with the command line of last time.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.unit.start_again()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.unit.is_running()
    }

    /// The process: its pid, memory and log.
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    /// What the command `explain` of its program says, run beside it as `kubectl exec` runs
    /// it: without its flags, its environment and its token.
    pub fn explain(&self, arguments: &[&str]) -> Result<String> {
        let program = self.binary.display().to_string();
        // Controllers share a namespace here, so each has a port of its own.
        let port = format!("--port={}", self.admin.port());
        let is_usual = [AGENT_PORT, CONTROLLER_PORT].contains(&self.admin.port());
        let mut argv = vec!["env", "--ignore-environment", &program, "explain"];
        argv.extend((!is_usual).then_some(port.as_str()));
        argv.extend(arguments);
        self.netns.check(&argv)
    }

    /// Its admin port, from [`Self::netns`].
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where it runs.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What a path of its admin port answers, asked from its own namespace.
    pub fn get(&self, path: &str) -> Result<String, ConnectError> {
        self.netns
            .run(|| http_text(self.admin, path, Duration::from_secs(2)))
    }

    /// Its metrics as text.
    pub fn metrics(&self) -> Result<String> {
        self.get("/metrics")
            .with_context(|| format!("metrics of {}", self.unit.name()))
    }

    /// The value of a metric, its name and labels written as they are exposed.
    pub fn metric(&self, series: &str) -> Result<f64> {
        let metrics = self.metrics()?;
        metrics
            .lines()
            .find_map(|line| {
                line.strip_prefix(series)?
                    .strip_prefix(' ')?
                    .trim()
                    .parse()
                    .ok()
            })
            .with_context(|| format!("{} has no metric {series}", self.unit.name()))
    }

    /// How many TCP connections to the API server it has.
    pub fn connections(&self) -> Result<usize> {
        let pid = self.unit.pid().context("it does not run")?;
        let port = format!("dport = :{API_PORT}");
        let command = ["ss", "-Htnp", "state", "established", &port];
        let sockets = self.netns.check(&command)?;
        let own = format!("pid={pid},");
        Ok(sockets.lines().filter(|line| line.contains(&own)).count())
    }

    /// Writes a kubeconfig with a fresh token of its ServiceAccount, bound to its Pod
    /// as the kubelet's are. Creates the Pod's object if need be.
    pub async fn kubeconfig(&self) -> Result<PathBuf> {
        let pod = self.workload.ensure_pod(&self.cluster).await?;
        self.write_token(&pod).await?;
        let state = self.cluster.state();
        let path = state.path(format!("pki/{}.kubeconfig", self.unit.name()));
        token_kubeconfig(state, &path, &self.api, &self.token_file())?;
        Ok(path)
    }

    /// Where it finds its token, as a container does.
    pub fn token_file(&self) -> PathBuf {
        let state = self.cluster.state();
        state.path(format!("pki/{}.token", self.unit.name()))
    }

    /// Replaces its token by a new one of its ServiceAccount that is bound to `pod`.
    pub async fn write_token(&self, pod: &Pod) -> Result<()> {
        let token = token::of_pod(self.cluster.client(), pod).await?;
        // By renaming, as the kubelet does: nobody reads half of it.
        let (file, new) = (self.token_file(), self.token_file().with_extension("new"));
        fs::write(&new, token).and_then(|()| fs::rename(&new, &file))?;
        Ok(())
    }
}

/// Loopback, of the family that the cluster has.
fn local(cluster: &Cluster, port: u16) -> SocketAddr {
    match cluster.config().ip_family.has_v4() {
        true => ([127, 0, 0, 1], port).into(),
        false => (Ipv6Addr::LOCALHOST, port).into(),
    }
}

/// The program that `variable` names, or else the one that was built with the harness.
fn binary(cluster: &Cluster, variable: &str, name: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => std::path::absolute(&path).unwrap_or_else(|_| path.into()),
        None => cluster.config().tools.join(name),
    }
}
