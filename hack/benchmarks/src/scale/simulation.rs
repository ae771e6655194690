//! A cluster with simulated nodes: their objects, their agents and the watches on what comes
//! of them. All of it runs in the network namespace of the control plane, so that no relay
//! between is measured.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{AsyncReadExt as _, StreamExt as _, TryStreamExt as _, stream};
use highwire_agent::metrics::Metrics;
use highwire_api::{LoadBalancerNode, names::CONTROLLER_LEASE};
use highwire_e2e::cluster::{controlplane::api_url, pki};
use highwire_e2e::lab::wait::try_wait_for;
use highwire_e2e::{Cluster, Program, Programs as _};
use highwire_runtime::heartbeat::Heartbeat;
use highwire_runtime::watch::{WatchHealth, follow, paged};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use prometheus::{IntCounterVec, Opts};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::agents::{Agent, Agents, Input};
use super::nodes::{self, Registered};
use super::services;
use super::step::{Moment, Step};
use super::traffic::Traffic;
use super::view::View;

const INPUTS: usize = 4096;
/// Kubelets write a Node's status this often, even if nothing has changed.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// See the module.
pub(super) struct Simulation {
    /// The cluster.
    pub(super) cluster: Cluster,
    /// An admin's client.
    pub(super) client: Client,
    /// What the watches have shown.
    pub(super) view: View,
    /// What the agents asked of the API server.
    pub(super) traffic: Traffic,
    /// How long the agents' decisions took, and their number.
    pub(super) decisions: watch::Receiver<(Duration, usize)>,
    config: kube::Config,
    nodes: Vec<Registered>,
    metrics: Metrics,
    inputs: mpsc::Sender<Input>,
    tasks: JoinSet<()>,
}

impl Simulation {
    /// Registers the nodes. There are no agents yet.
    pub(super) async fn prepare(cluster: Cluster, count: usize) -> Result<Self> {
        let config = admin(&cluster).await?;
        let client = client(&config)?;
        let view = View::default();
        let (inputs, received) = mpsc::channel(INPUTS);
        let decisions = Agents::start(view.clone(), received)?;
        let mut simulation = Self {
            nodes: nodes::register(&client, count).await?,
            metrics: Metrics::new()?,
            tasks: JoinSet::new(),
            traffic: Traffic::default(),
            cluster,
            client,
            view,
            decisions,
            config,
            inputs,
        };
        simulation.watch()?;
        services::prepare(&simulation.client).await?;
        Ok(simulation)
    }

    /// Starts all agents `within` that time. Returns when all have reported.
    pub(super) async fn start_all(&self, within: Duration) -> Result<()> {
        self.start_agents(0..self.count(), within).await?;
        let limit = Duration::from_secs(120);
        try_wait_for("all nodes to report", limit, || async {
            let reported = self.view.reported();
            ensure!(reported >= self.count(), "{reported} of {}", self.count());
            Ok(())
        })
        .await
    }

    /// How many nodes there are.
    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    fn watch(&mut self) -> Result<()> {
        let errors = IntCounterVec::new(Opts::new("watch_errors", "Failed watches"), &["kind"])?;
        let health = WatchHealth::new(errors);
        let (all, inputs) = (
            Api::<Service>::all(self.client.clone()),
            self.inputs.clone(),
        );
        self.tasks.spawn(follow(
            "Services",
            all,
            paged(),
            health.clone(),
            inputs,
            |event| Input::Service(Box::new(event)),
        ));
        let all = Api::<LoadBalancerNode>::all(self.client.clone());
        let (sender, mut reports) = mpsc::channel(INPUTS);
        self.tasks.spawn(follow(
            "LoadBalancerNodes",
            all,
            paged(),
            health,
            sender,
            |event| event,
        ));
        let view = self.view.clone();
        self.tasks.spawn(async move {
            while let Some(event) = reports.recv().await {
                view.report(&event);
            }
        });
        let (client, count) = (self.client.clone(), self.count());
        self.tasks.spawn(async move {
            let pause = HEARTBEAT / u32::try_from(count).unwrap_or(u32::MAX);
            for index in (0..count).cycle() {
                tokio::time::sleep(pause).await;
                // While the API server is away there is nothing to write.
                nodes::beat(&client, index).await.ok();
            }
        });
        Ok(())
    }

    /// Starts the agents of these nodes, one after the other, `within` that time.
    pub(super) async fn start_agents(
        &self,
        indices: impl IntoIterator<Item = usize>,
        within: Duration,
    ) -> Result<()> {
        let indices: Vec<usize> = indices.into_iter().collect();
        let pause = within / u32::try_from(indices.len())?;
        for index in indices {
            let node = &self.nodes[index];
            let client = self.traffic.counted(client(&self.with_token(&node.token))?);
            let agent = Agent::new(&Handle::current(), node, &client, &self.metrics)?;
            let started = self.inputs.send(Input::Start(Box::new(agent))).await;
            started.ok().context("the thread of the agents has ended")?;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// The nodes of these indices are lost with their agents.
    pub(super) async fn lose(&self, indices: &[usize]) -> Result<()> {
        for index in indices {
            let lost = self.inputs.send(Input::Lose(nodes::name(*index))).await;
            lost.ok().context("the thread of the agents has ended")?;
        }
        Ok(())
    }

    fn with_token(&self, token: &str) -> kube::Config {
        let mut config = self.config.clone();
        config.auth_info = AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        };
        config
    }

    /// The beginning of a step.
    pub(super) async fn moment(&self) -> Result<Moment> {
        Moment::now(&self.cluster, &self.client, &self.view).await
    }

    /// The step that began then.
    pub(super) async fn since(&self, moment: &Moment) -> Result<Step> {
        moment.step(&self.cluster, &self.client, &self.view).await
    }

    /// The controller that leads.
    pub(super) async fn leader(&self) -> Result<Program> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), nodes::NAMESPACE);
        let lease = leases.get(CONTROLLER_LEASE).await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        let holder = holder.filter(|holder| !holder.is_empty());
        self.cluster
            .controller(&holder.context("no controller leads")?)
    }

    /// Opens so many more watches of the Services, each on a connection of its own, and reads
    /// what comes without keeping it. They end when the result is dropped.
    pub(super) async fn more_watches(&self, count: usize) -> Result<Watches> {
        let opening = (0..count).map(|_| self.config.clone());
        let opening = opening.map(async |config| {
            let client = client(&config)?;
            let request =
                http::Request::get("/api/v1/services?watch=1&resourceVersion=0").body(Vec::new())?;
            let mut stream = Box::pin(client.request_stream(request).await?);
            let reading = tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while stream
                    .read(&mut buffer)
                    .await
                    .is_ok_and(|length| length > 0)
                {}
            });
            anyhow::Ok(reading.abort_handle())
        });
        let opened = stream::iter(opening).buffer_unordered(8).try_collect();
        Ok(Watches(opened.await?))
    }
}

/// Watches that are read; dropped, they end.
pub(super) struct Watches(Vec<AbortHandle>);

impl Drop for Watches {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// An admin's configuration, for use inside the namespace of the control plane.
async fn admin(cluster: &Cluster) -> Result<kube::Config> {
    let state = cluster.state();
    let path = state.path("pki/admin-inside.kubeconfig");
    let server = api_url(cluster.config().ip_family);
    pki::certificate_kubeconfig(state, &path, &server, "admin")?;
    let (kubeconfig, options) = (Kubeconfig::read_from(&path)?, KubeConfigOptions::default());
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.proxy_url = None;
    Ok(config)
}

fn client(config: &kube::Config) -> Result<Client> {
    let heard = Heartbeat::default();
    Ok(highwire_runtime::client::client(config, &heard, None)?)
}
