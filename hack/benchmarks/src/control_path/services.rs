//! Many Services at once.

use std::time::Duration;

use anyhow::{Context, Result};
use highwire_e2e::{Program, Scope, Svc, wait_for};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Requests at a time.
const AT_ONCE: usize = 16;
/// How long the agents may take to follow.
const LIMIT: Duration = Duration::from_secs(180);
/// The first port of Services that are only there: beyond those of the measured ones, and
/// beyond NodePorts, for whose sake they would be refused.
const FIRST_PORT: usize = 40_000;

/// Services that are there while others are measured. They have no NodePorts, of which
/// Kubernetes gives out 2,768 only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowd {
    /// The beginning of their names.
    pub(crate) prefix: &'static str,
    /// How many.
    pub(crate) services: usize,
    /// How many ports each has.
    pub(crate) ports: usize,
    /// TCP or UDP.
    pub(crate) protocol: &'static str,
    /// Whether they select the echo Pods; else their endpoints are written by hand.
    pub(crate) has_selector: bool,
}

impl Crowd {
    /// So many Services of ten TCP ports each.
    pub(crate) fn of_ten_ports(services: usize) -> Self {
        Self {
            prefix: "there",
            services,
            ports: 10,
            protocol: "TCP",
            has_selector: true,
        }
    }

    /// How many ports they have together.
    pub(crate) fn all_ports(self) -> usize {
        self.services * self.ports
    }

    /// The name of one of them.
    pub(crate) fn name(self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// The name of its first port.
    pub(crate) fn port_name(self, index: usize) -> String {
        format!("p{}", FIRST_PORT + index * self.ports)
    }

    fn object(self, index: usize) -> Value {
        let first = FIRST_PORT + index * self.ports;
        let ports = (first..first + self.ports).map(|port| {
            json!({"name": format!("p{port}"), "port": port, "targetPort": 8080,
                   "protocol": self.protocol})
        });
        let mut object = json!({
            "metadata": {"name": self.name(index)},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                     "ports": ports.collect::<Vec<_>>()},
        });
        if self.has_selector {
            object["spec"]["selector"] = json!({"app": "web"});
        }
        object
    }

    /// Creates those from `first` on, and waits until the agents serve `total` Services.
    pub(crate) async fn create(
        self,
        scope: &Scope,
        first: usize,
        agents: &[Program],
        total: usize,
    ) -> Result<()> {
        let api: Api<Service> = Api::namespaced(scope.cluster().client(), scope.namespace());
        let mut creating = JoinSet::new();
        for index in first..self.services {
            if creating.len() >= AT_ONCE {
                creating.join_next().await.context("no request")???;
            }
            let (api, service) = (api.clone(), serde_json::from_value(self.object(index))?);
            creating.spawn(async move {
                let created = api.create(&PostParams::default(), &service).await;
                created.map(drop).context("create a Service")
            });
        }
        while let Some(created) = creating.join_next().await {
            created??;
        }
        served(agents, total).await;
        Ok(())
    }
}

/// Deletes all Services of the scope and waits until the agents serve none.
pub(crate) async fn delete_all(scope: &Scope, agents: &[Program]) -> Result<()> {
    let api: Api<Service> = Api::namespaced(scope.cluster().client(), scope.namespace());
    api.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    served(agents, 0).await;
    Ok(())
}

/// Waits until each agent serves so many Services, kube-proxy has them too, and every status
/// is written, as far as the agents see that: nothing has changed for a while.
pub(crate) async fn served(agents: &[Program], services: usize) {
    for agent in agents {
        let name = agent.unit().name().to_owned();
        wait_for(&format!("{services} Services on {name}"), LIMIT, || async {
            let seen = |series| agent.metric(series).map_err(|error| error.to_string());
            let now = (
                seen("highwire_agent_services")?,
                seen("highwire_agent_awaited_ports")?,
            );
            if now == (services as f64, 0.0) {
                Ok(())
            } else {
                Err(format!("{} Services, {} ports awaited", now.0, now.1))
            }
        })
        .await;
    }
}

/// Waits until the API server has written nothing about the Services of the scope for
/// `quiet`.
pub(crate) async fn settled(scope: &Scope, quiet: Duration) -> Result<()> {
    let api: Api<Service> = Api::namespaced(scope.cluster().client(), scope.namespace());
    let version = async || -> Result<Option<String>> {
        let list = api.list_metadata(&ListParams::default()).await?;
        let versions = list
            .items
            .iter()
            .filter_map(|it| it.metadata.resource_version.clone());
        Ok(versions.max_by_key(|version| version.parse::<u64>().unwrap_or(0)))
    };
    let mut last = version().await?;
    loop {
        tokio::time::sleep(quiet).await;
        let now = version().await?;
        if now == last {
            return Ok(());
        }
        last = now;
    }
}

/// A Service of one port that selects the echo Pods.
pub(crate) async fn create(scope: &Scope, name: &str) -> Result<(u16, Svc)> {
    let port = scope.free_port()?;
    let service = scope.service(name).load_balancer();
    let service = service.select("app", "web").tcp(port, 8080);
    Ok((port, service.create().await?))
}
