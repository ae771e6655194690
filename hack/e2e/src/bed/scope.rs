//! A Kubernetes namespace per test, and everything in it removed with it.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject, Service, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::bed::pod::{Pod, PodBuilder};
use crate::bed::service::ServiceBuilder;
use crate::cluster::handle::{self, Cluster};
use crate::lab::state::State;
use crate::lab::test_run::{self, Leftover};

/// How long taking a scope away may last.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);
/// Service ports handed out: below NodePorts, above what anything else here listens on.
const FIRST_PORT: u16 = 20_000;
const PORTS: u64 = 10_000;

/// Who changes what all tests of the shared cluster stand on (its agents, controllers and
/// kube-proxies), or counts what they cost, is alone there.
static SHARED: RwLock<()> = RwLock::const_new(());

/// With whom a scope shares its cluster, for as long as it lives.
enum Company {
    /// Other scopes may be there.
    Any { _held: RwLockReadGuard<'static, ()> },
    /// No other scope is there.
    None {
        _held: RwLockWriteGuard<'static, ()>,
    },
    /// The cluster is the test's own.
    Own,
}

/// A namespace of its own. At the end of the test its Services, Pods, processes and the
/// namespace are removed; with a cluster of the test's own they go with that.
pub struct Scope {
    cluster: Cluster,
    namespace: String,
    company: Option<Company>,
}

impl Scope {
    /// Creates a namespace called after `prefix`.
    pub async fn new(cluster: &Cluster, prefix: &str) -> Result<Self> {
        let company = match cluster.is_shared() {
            true => Company::Any {
                _held: SHARED.read().await,
            },
            false => Company::Own,
        };
        Self::with(cluster, prefix, company).await
    }

    /// The same on the shared cluster, with no other scope there meanwhile.
    pub async fn alone(cluster: &Cluster, prefix: &str) -> Result<Self> {
        let _held = SHARED.write().await;
        Self::with(cluster, prefix, Company::None { _held }).await
    }

    async fn with(cluster: &Cluster, prefix: &str, company: Company) -> Result<Self> {
        let namespace = format!("{prefix}-{}", cluster.state().next("scope")?);
        let client = cluster.client();
        let object: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": namespace } }))?;
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("create namespace {namespace}"))?;
        test_run::uses_namespace(cluster.state(), &namespace);
        let scope = Self {
            cluster: cluster.clone(),
            namespace,
            company: Some(company),
        };
        // Pods need it, and its controller takes a moment.
        let account: ServiceAccount =
            serde_json::from_value(json!({ "metadata": { "name": "default" } }))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, &scope.namespace);
        match accounts.create(&PostParams::default(), &account).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            outcome => drop(outcome.context("create the default ServiceAccount")?),
        }
        Ok(scope)
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The cluster it is in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A Pod with an echo server, to be started.
    pub fn pod(&self, name: &str) -> PodBuilder {
        PodBuilder::new(&self.cluster, &self.namespace, name)
    }

    /// A Service, to be created.
    pub fn service(&self, name: &str) -> ServiceBuilder {
        ServiceBuilder::new(&self.cluster, &self.namespace, name)
    }

    /// A Service port nobody else in the cluster was given (until 10,000 were).
    pub fn free_port(&self) -> Result<u16> {
        let offset = u16::try_from(self.cluster.state().next("port")? % PORTS)?;
        test_run::uses_port(FIRST_PORT + offset);
        Ok(FIRST_PORT + offset)
    }

    /// Removes it now.
    pub fn remove(mut self) {
        self.company = None;
        remove(&self.cluster, &self.namespace);
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        match self.company.take() {
            None | Some(Company::Own) => {}
            Some(company) => test_run::at_end(Removal {
                cluster: self.cluster.clone(),
                namespace: self.namespace.clone(),
                _company: company,
            }),
        }
    }
}

/// A scope on the shared cluster that was dropped.
struct Removal {
    cluster: Cluster,
    namespace: String,
    _company: Company,
}

impl Leftover for Removal {
    fn remove(self: Box<Self>) {
        remove(&self.cluster, &self.namespace);
    }

    fn keep(self: Box<Self>) {}
}

fn remove(cluster: &Cluster, namespace: &str) {
    for pod in Pod::list(cluster.state(), namespace) {
        if let Err(error) = pod.stop() {
            eprintln!("scope {namespace}: {error:#}");
        }
    }
    let (name, state, namespace) = (namespace, cluster.state().clone(), namespace.to_owned());
    // The test's runtime cannot be waited on from here; this thread has its own.
    let removal = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            tokio::time::timeout(REMOVE_LIMIT, remove_objects(&state, &namespace))
                .await
                .context("the API server does not answer")?
        })
    });
    if let Ok(Err(error)) = removal.join() {
        eprintln!("scope {name}: {error:#}");
    }
}

/// Services first, so that their ports are free at once; the rest goes with the
/// namespace, for whose end nobody needs to wait.
async fn remove_objects(state: &State, namespace: &str) -> Result<()> {
    let client: Client = handle::client(state).await?;
    let (now, all) = (
        DeleteParams::default().grace_period(0),
        ListParams::default(),
    );
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    services
        .delete_collection(&DeleteParams::default(), &all)
        .await?;
    let pods: Api<PodObject> = Api::namespaced(client.clone(), namespace);
    pods.delete_collection(&now, &all).await?;
    Api::<Namespace>::all(client)
        .delete(namespace, &DeleteParams::default())
        .await?;
    Ok(())
}
