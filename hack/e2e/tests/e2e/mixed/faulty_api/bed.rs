//! What is expected of every fault: what lives goes on, and nobody has to restart anything.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use highwire_e2e::expect::{AMPLE, LONG, answers};
use highwire_e2e::faulty_api::{Fault, FaultyApi, Outcome, Refusal, Requests, Rule, WatchFault};
use highwire_e2e::{Cluster, EchoStream, Netns, Node, Program, Scope, Svc, wait_for};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams};
use kube::runtime::watcher;
use tokio::task::JoinHandle;

/// Every dependency may say once that it fails and once that it works again: six watches, two
/// objects to write, the election, and kube-proxy's and nft's own lines beside them.
const LINES: usize = 30;
/// Errors whose text changes from one try to the next are logged each time, by each of them
/// about every two seconds.
const LINES_PER_SECOND: f64 = 5.0;

/// A refusal of everything, and what `/readyz` says of it.
pub(super) struct Refused {
    /// The status code, or what there is instead.
    pub(super) name: &'static str,
    pub(super) fault: Fault,
    pub(super) says: &'static str,
}

/// Every kind of refusal.
pub(super) fn refusals() -> [Refused; 9] {
    let refused = |name, fault, says| Refused { name, fault, says };
    let refuse = |name, refusal, says| refused(name, Fault::Refuse(refusal), says);
    let busy = Refusal::TooManyRequests { retry_after: 1 };
    [
        refuse("429", busy, "Too many requests"),
        refuse(
            "500",
            Refusal::InternalError,
            "etcdserver: request timed out",
        ),
        refuse(
            "401",
            Refusal::Unauthorized,
            "is the ServiceAccount token valid?",
        ),
        refuse(
            "403",
            Refusal::Forbidden,
            "was the RBAC of deploy/ applied?",
        ),
        refuse("404", Refusal::NotFound, "was all of deploy/ applied?"),
        refuse("409", Refusal::Conflict, "the object has been modified"),
        refuse("410", Refusal::Gone, "resource version is too old"),
        refused("closed", Fault::Close, "connection"),
        refused("garbage", Fault::Garbage, "expected value"),
    ]
}

/// How a watch breaks while it goes on.
const BROKEN: [(&str, WatchFault, Outcome); 5] = [
    ("cut", WatchFault::CutMidEvent, Outcome::Cut),
    ("repeated", WatchFault::Repeat, Outcome::Repeated),
    ("reordered", WatchFault::Reorder, Outcome::Reordered),
    ("gone", WatchFault::GoneEvent, Outcome::GoneEvent),
    ("garbage", WatchFault::Garbage, Outcome::Garbage),
];

/// A Service that one node serves, with a client that talks to it all the time.
pub(super) struct Served {
    pub(super) scope: Scope,
    pub(super) node: Node,
    pub(super) program: Program,
    pub(super) faulty: FaultyApi,
    client: Netns,
    port: u16,
    stream: EchoStream,
    kept: Kept,
    pid: Option<i32>,
}

impl Served {
    /// A Service on that node, of which nothing is to be lost while the program's network
    /// fails.
    pub(super) async fn new(
        cluster: &Cluster,
        scope: Scope,
        node: &str,
        (program, faulty): (Program, FaultyApi),
    ) -> Result<Self> {
        let (node, client) = (cluster.node(node)?, cluster.outside());
        let pod = scope.pod("web").on(&node.name).label("app", "web");
        pod.tcp(8080).start().await?;
        let port = scope.free_port()?;
        let service = on_node(&scope, "web", port, &node).await?;
        listed(&service, &node).await;
        answers(&client, node.v4(port)).await;
        let stream = client.tcp_connect(node.v4(port), LONG)?;
        let kept = Kept::new(cluster, &scope, &node);
        let pid = program.unit().pid();
        Ok(Self {
            scope,
            node,
            program,
            faulty,
            client,
            port,
            stream,
            kept,
            pid,
        })
    }

    /// What lives goes on: an old connection, new ones, and the ingress.
    pub(super) fn lives(&mut self) -> Result<()> {
        self.forwards()?;
        self.kept.check()
    }

    /// An old connection and new ones are answered.
    pub(super) fn forwards(&mut self) -> Result<()> {
        self.stream.say("on")?;
        for _ in 0..5 {
            self.client.http_get(self.node.v4(self.port), AMPLE)?;
        }
        Ok(())
    }

    /// Starts the program, which has ended.
    pub(super) async fn start_again(&mut self) -> Result<()> {
        self.program.start(&[]).await?;
        self.pid = self.program.unit().pid();
        Ok(())
    }

    /// The program works, without a restart, and says so.
    pub(super) async fn recovered(&self) -> Result<()> {
        self.works("recovered").await?;
        self.program.wait_ready(LONG).await
    }

    /// The program works without a restart: what is new is served and advertised.
    pub(super) async fn works(&self, name: &str) -> Result<()> {
        let port = self.scope.free_port()?;
        let service = on_node(&self.scope, name, port, &self.node).await?;
        answers(&self.client, self.node.v4(port)).await;
        listed(&service, &self.node).await;
        ensure!(self.program.unit().pid() == self.pid, "it was restarted");
        Ok(())
    }

    /// Waits until `/readyz` says this of that dependency.
    pub(super) async fn says(&self, dependency: &str, wanted: &str) {
        let what = format!("readyz to say {wanted:?} of {dependency:?}");
        wait_for(&what, LONG, || async {
            let said = match self.program.get("/readyz") {
                Ok(_) => return Err("ready".to_owned()),
                Err(error) => error.to_string(),
            };
            let is_it = |line: &str| line.contains(dependency) && line.contains(wanted);
            if said.lines().any(is_it) {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
    }

    /// Waits until so many requests or events of this kind went wrong since the faults were set.
    pub(super) async fn suffered(&self, requests: &Requests, times: u64) {
        wait_for(&format!("{requests:?} to fail"), LONG, || async {
            let now = self.faulty.faults(requests);
            if now >= times { Ok(()) } else { Err(now) }
        })
        .await;
    }

    /// Everything that the program asks for fails so for a while, and then works. `/readyz`
    /// names the dependency.
    pub(super) async fn survives(&mut self, refused: Refused, dependency: &str) -> Result<()> {
        let Refused { name, fault, says } = refused;
        let log = LogLines::new(&self.program)?;
        self.faulty.set(vec![Rule::new(Requests::all(), fault)]);
        self.says(dependency, says).await;
        self.suffered(&Requests::all(), 10).await;
        self.lives().with_context(|| format!("during {name}"))?;
        self.faulty.clear();
        self.works(&format!("after-{name}")).await?;
        self.lives().with_context(|| format!("after {name}"))?;
        log.check(name)
    }

    /// So many of its watches break, in each way there is, those of `counted` among
    /// them. What is new meanwhile is served and advertised.
    pub(super) async fn survives_broken_watches(
        &mut self,
        counted: &Requests,
        times: u32,
    ) -> Result<()> {
        for (name, fault, outcome) in BROKEN {
            let log = LogLines::new(&self.program)?;
            let rule = Rule::new(Requests::all(), Fault::Watch(fault)).times(times);
            let before = self.faulty.counts().of(counted, outcome);
            self.faulty.set(vec![rule]);
            let mut created = Vec::new();
            for number in 1..=3 {
                let port = self.scope.free_port()?;
                let name = format!("{name}-{number}");
                created.push((port, on_node(&self.scope, &name, port, &self.node).await?));
            }
            // While the watches break.
            for (port, service) in &created {
                answers(&self.client, self.node.v4(*port)).await;
                listed(service, &self.node).await;
            }
            let now = self.faulty.counts().of(counted, outcome);
            ensure!(now > before, "no watch was {name}");
            self.lives().with_context(|| format!("during {name}"))?;
            self.faulty.clear();
            self.works(&format!("after-{name}")).await?;
            log.check(name)?;
        }
        Ok(())
    }
}

/// The lines that a program has logged since.
pub(super) struct LogLines {
    program: Program,
    before: usize,
    since: Instant,
}

impl LogLines {
    pub(super) fn new(program: &Program) -> Result<Self> {
        Ok(Self {
            before: lines(program)?.len(),
            program: program.clone(),
            since: Instant::now(),
        })
    }

    /// It is no flood.
    pub(super) fn check(&self, name: &str) -> Result<()> {
        let now = lines(&self.program)?;
        let (new, time) = (&now[self.before..], self.since.elapsed());
        println!("{name}: {} lines in {time:.1?}", new.len());
        let limit = Duration::as_secs_f64(&time) * LINES_PER_SECOND;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let limit = LINES + limit as usize;
        ensure!(
            new.len() <= limit,
            "{name}: {} lines:\n{}",
            new.len(),
            new.join("\n")
        );
        Ok(())
    }
}

fn lines(program: &Program) -> Result<Vec<String>> {
    let log = fs::read_to_string(program.unit().log_path())?;
    Ok(log.lines().map(str::to_owned).collect())
}

/// A LoadBalancer Service for the Pods `app=web` on that node only, of IPv4.
pub(super) async fn on_node(scope: &Scope, name: &str, port: u16, node: &Node) -> Result<Svc> {
    let selector = format!("kubernetes.io/hostname={}", node.name);
    let service = scope.service(name).load_balancer().select("app", "web");
    let service = service.annotation("highwire.dev/node-selector", &selector);
    service.tcp(port, 8080).create().await
}

/// Waits until the node is listed, and no other.
pub(super) async fn listed(service: &Svc, node: &Node) {
    let address = node.addresses()[0].to_string();
    highwire_e2e::expect::ingress_is(service, &[&address]).await;
}

/// The version of all Services as they are now.
pub(super) async fn version(cluster: &Cluster) -> Result<u64> {
    let services: Api<Service> = Api::all(cluster.client());
    let list = services.list(&ListParams::default().limit(1)).await?;
    Ok(list
        .metadata
        .resource_version
        .context("no version")?
        .parse()?)
}

/// Watches that a Service keeps its address, all the time.
struct Kept {
    lost: Arc<Mutex<Vec<String>>>,
    watching: JoinHandle<()>,
}

impl Kept {
    fn new(cluster: &Cluster, scope: &Scope, node: &Node) -> Self {
        let services: Api<Service> = Api::namespaced(cluster.client(), scope.namespace());
        let wanted = node.addresses()[0].to_string();
        let lost: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&lost);
        let watching = tokio::spawn(async move {
            let config = watcher::Config::default().fields("metadata.name=web");
            let mut events = std::pin::pin!(watcher(services, config));
            while let Some(event) = events.next().await {
                let service = match event {
                    Ok(watcher::Event::Apply(service) | watcher::Event::InitApply(service)) => {
                        service
                    }
                    _ => continue,
                };
                let status = service
                    .status
                    .and_then(|it| it.load_balancer)
                    .unwrap_or_default();
                let ingress = status.ingress.unwrap_or_default();
                if !ingress
                    .iter()
                    .any(|entry| entry.ip.as_ref() == Some(&wanted))
                {
                    let mut lost = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    lost.push(format!("{ingress:?}"));
                }
            }
        });
        Self { lost, watching }
    }

    fn check(&self) -> Result<()> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(lost.is_empty(), "the ingress lost its address: {lost:?}");
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
