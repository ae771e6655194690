//! What one step of a run cost: time, requests, CPU, memory.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use highwire_e2e::Cluster;
use kube::Client;
use serde::{Deserialize, Serialize};

use super::api_metrics::ApiServer;
use super::usage::{Usage, etcd_size};
use super::view::View;

/// The processes that are followed.
const PROCESSES: [&str; 5] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "controller-c1",
    "controller-c2",
];

/// What happened in a step, and what it took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Step {
    /// How long the step was followed, in seconds.
    pub(super) lasted: f64,
    /// What the API server did meanwhile.
    pub(super) api: ApiServer,
    /// What each process used meanwhile.
    pub(super) usage: BTreeMap<String, Usage>,
    /// How often the status of a Service changed.
    pub(super) status_changes: usize,
    /// How many events of Services each agent got.
    pub(super) events: usize,
    /// etcd's database in MiB at the end, and what was in use of it.
    pub(super) etcd: (f64, f64),
    /// Times in seconds, and what else is particular to this step.
    pub(super) figures: BTreeMap<String, f64>,
}

/// What is read at the beginning and at the end of a step.
pub(super) struct Moment {
    at: Instant,
    api: ApiServer,
    usage: BTreeMap<String, Usage>,
    status_changes: usize,
    events: usize,
}

impl Moment {
    /// Now.
    pub(super) async fn now(cluster: &Cluster, client: &Client, view: &View) -> Result<Self> {
        let usage = PROCESSES.iter().filter_map(|name| {
            let usage = Usage::of(&cluster.unit(name))?;
            Some(((*name).to_owned(), usage))
        });
        Ok(Self {
            usage: usage.collect(),
            api: ApiServer::read(client).await?,
            status_changes: view.writes(),
            events: view.events(),
            at: Instant::now(),
        })
    }

    /// The step from here to now.
    pub(super) async fn step(
        &self,
        cluster: &Cluster,
        client: &Client,
        view: &View,
    ) -> Result<Step> {
        let now = Self::now(cluster, client, view).await?;
        let usage = now.usage.into_iter().map(|(name, usage)| {
            let usage = usage.since(self.usage.get(&name).copied());
            (name, usage)
        });
        Ok(Step {
            lasted: now.at.duration_since(self.at).as_secs_f64(),
            usage: usage.collect(),
            api: now.api.since(&self.api),
            status_changes: now.status_changes.saturating_sub(self.status_changes),
            events: now.events - self.events,
            etcd: etcd_size(cluster)?,
            figures: BTreeMap::new(),
        })
    }
}

impl Step {
    /// Adds a figure.
    pub(super) fn with(mut self, name: &str, value: f64) -> Self {
        self.figures.insert(name.to_owned(), value);
        self
    }

    /// The leading controller: the one that used more CPU time.
    pub(super) fn controller(&self) -> Usage {
        let [one, other] = self.controllers();
        if one.cpu > other.cpu { one } else { other }
    }

    /// The other one.
    pub(super) fn follower(&self) -> Usage {
        let [one, other] = self.controllers();
        if one.cpu > other.cpu { other } else { one }
    }

    fn controllers(&self) -> [Usage; 2] {
        ["controller-c1", "controller-c2"].map(|name| self.process(name))
    }

    /// What a process used.
    pub(super) fn process(&self, name: &str) -> Usage {
        self.usage.get(name).copied().unwrap_or_default()
    }
}
