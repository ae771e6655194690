//! Many agents in one process: each decides and reports with the agent's own code. What they
//! would watch alike, the Services, is watched once, and what their hosts would be asked is
//! made up: every node has one address, kube-proxy in nftables mode and nothing that
//! listens, and whatever is decided is in its kernel at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use highwire_agent::config::{Cli, Config};
use highwire_agent::decide::decide;
use highwire_agent::facts::Facts;
use highwire_agent::facts::addresses::HostAddress;
use highwire_agent::facts::listener_history::Listeners;
use highwire_agent::facts::node::NodeFacts;
use highwire_agent::facts::service_proxy::ServiceProxy;
use highwire_agent::facts::services::Services;
use highwire_agent::facts::sysctls::Sysctls;
use highwire_agent::metrics::Metrics;
use highwire_agent::report::Report;
use highwire_agent::report::writer::Writer;
use highwire_api::node::ProxyMode;
use highwire_api::{ClassPolicy, Family};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt as _};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::nodes::Registered;
use super::view::View;

/// As the agent's loop collects a burst.
const QUIET: Duration = Duration::from_millis(2);
const LONGEST_BURST: Duration = Duration::from_millis(40);

/// What the thread that decides for all agents is given.
#[derive(Debug)]
pub(super) enum Input {
    /// An event of the Services.
    Service(Box<Event<Service>>),
    /// An agent starts.
    Start(Box<Agent>),
    /// The node of that name is lost, with its agent.
    Lose(String),
}

/// One agent.
#[derive(Debug)]
pub(super) struct Agent {
    name: String,
    node: NodeFacts,
    addresses: Vec<HostAddress>,
    config: Config,
    reports: watch::Sender<Option<Report>>,
    /// The agent's own writer of reports and Leases.
    writer: JoinHandle<()>,
    /// Which state of the Services it has decided on.
    decided: u64,
}

impl Agent {
    /// The agent of a node, with a client of its own.
    pub(super) fn new(
        runtime: &Handle,
        node: &Registered,
        client: &Client,
        metrics: &Metrics,
    ) -> Result<Self> {
        let (name, node) = (node.node.name_any(), NodeFacts::of(&node.node));
        let Cli::Run(config) = Cli::parse_from(["highwire-agent", "--node-name", &name])? else {
            bail!("the agent's command line means something else");
        };
        let (uid, has_uid) = watch::channel(Some(node.uid.clone()));
        let (reports, reported) = watch::channel(None);
        let writer = Writer::new(client, &config, has_uid, metrics.clone());
        let writer = runtime.spawn(async move {
            // Both senders are kept: the Node and the report stay.
            let (_uid, (_exists, exists)) = (uid, mpsc::channel(1));
            writer.run(reported, exists).await;
        });
        let address = |address: &IpAddr| HostAddress {
            address: *address,
            interface: "eth0".into(),
            devices: BTreeSet::new(),
            global: true,
            on_default_route: true,
        };
        Ok(Self {
            addresses: node.addresses.iter().map(address).collect(),
            name,
            node,
            config,
            reports,
            writer,
            decided: 0,
        })
    }
}

/// Decides for all agents, one after the other, on a thread of its own.
#[derive(Debug)]
pub(super) struct Agents {
    services: Services,
    /// Counts the changes of facts; the first state of the Services is 1.
    state: u64,
    agents: BTreeMap<String, Agent>,
    view: View,
    /// How long the decisions took, and their number.
    decisions: watch::Sender<(Duration, usize)>,
}

impl Agents {
    /// Starts the thread. It ends with the sender of inputs.
    pub(super) fn start(
        view: View,
        inputs: mpsc::Receiver<Input>,
    ) -> Result<watch::Receiver<(Duration, usize)>> {
        let (decisions, decided) = watch::channel((Duration::ZERO, 0));
        let agents = Self {
            services: Services::new(ClassPolicy::DefaultAndOurs),
            state: 0,
            agents: BTreeMap::new(),
            view,
            decisions,
        };
        let thread = thread::Builder::new().name("agents".into());
        thread
            .spawn(move || agents.run(inputs))
            .context("start a thread")?;
        Ok(decided)
    }

    fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        while let Some(input) = inputs.blocking_recv() {
            self.absorb(input);
            let start = Instant::now();
            while start.elapsed() < LONGEST_BURST {
                thread::sleep(QUIET);
                if !self.absorb_all(&mut inputs) {
                    break;
                }
            }
            self.decide_all(&mut inputs);
        }
    }

    /// Takes in what is there. Says whether anything was.
    fn absorb_all(&mut self, inputs: &mut mpsc::Receiver<Input>) -> bool {
        let mut any = false;
        while let Ok(input) = inputs.try_recv() {
            self.absorb(input);
            any = true;
        }
        any
    }

    fn absorb(&mut self, input: Input) {
        match input {
            Input::Service(event) => {
                self.view.service(&event);
                self.state += u64::from(self.services.absorb(*event));
            }
            Input::Start(agent) => {
                self.agents.insert(agent.name.clone(), *agent);
            }
            Input::Lose(name) => {
                if let Some(agent) = self.agents.remove(&name) {
                    agent.writer.abort();
                }
            }
        }
    }

    /// Has each agent decide on the newest state there is when it is its turn, until none is
    /// behind.
    fn decide_all(&mut self, inputs: &mut mpsc::Receiver<Input>) {
        loop {
            let behind = self.agents.values().filter(|it| it.decided != self.state);
            let behind: Vec<String> = behind.map(|agent| agent.name.clone()).collect();
            if behind.is_empty() {
                break;
            }
            for name in behind {
                self.decide(&name);
                self.absorb_all(inputs);
            }
        }
        // What no fact came from still is a version that was observed.
        let observed = self.services.observed();
        for agent in self.agents.values() {
            agent.reports.send_if_modified(|report| match report {
                Some(report) if report.observed != observed => {
                    report.observed = observed;
                    true
                }
                _ => false,
            });
        }
    }

    fn decide(&mut self, name: &str) {
        let (Some(services), Some(agent)) = (self.services.known(), self.agents.get_mut(name))
        else {
            return;
        };
        let start = Instant::now();
        let decision = decide(&Facts {
            services,
            node: &agent.node,
            addresses: &agent.addresses,
            pods: &BTreeMap::new(),
            listeners: &Listeners::default(),
            sysctls: &Sysctls {
                forwarding: Family::ALL.into(),
                ..Sysctls::default()
            },
            proxy: &ServiceProxy {
                mode: Some(ProxyMode::Nftables),
                failing: None,
            },
            slices: None,
            policy: &agent.config.policy,
            left_out: &BTreeMap::new(),
        });
        agent.decided = self.state;
        let report = Report {
            node_uid: agent.node.uid.clone(),
            decision: Arc::new(decision),
            revision: self.services.revision(),
            observed: self.services.observed(),
            proxy_mode: Some(ProxyMode::Nftables),
            awaited: 0,
        };
        agent.reports.send_if_modified(|reported| {
            let report = Some(report);
            let differs = *reported != report;
            *reported = report;
            differs
        });
        self.decisions.send_modify(|(time, count)| {
            *time += start.elapsed();
            *count += 1;
        });
    }
}
