//! How the agent leaves a node.
//!
//! On a restart or an upgrade the rules stay and traffic goes on. Only when the
//! node has been opted out, or Highwire is being removed, they go too.

use std::path::PathBuf;

use anyhow::{Context, Result};
use highwire_runtime::{
    leaving::{Answer, Leaving, Memory, look_at, look_at_namespace, metadata, owner},
    watch::WatchHealth,
};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Pod},
};
use kube::{Api, Client, ResourceExt, runtime::watcher::Event};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    config::{Config, Place},
    kernel::Kernel,
    node::NodeFacts,
    reporter::Reporter,
    ruleset::Transaction,
};

/// What the agent knows of the objects that decide whether it will be back; clones share
/// it.
#[derive(Clone)]
pub struct Tenure {
    client: Client,
    node_name: String,
    place: Place,
    memory: Memory,
    /// The UID of the Node, while it exists.
    node: watch::Sender<Option<String>>,
}

impl Tenure {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(client: Client, config: &Config) -> Self {
        Self {
            client,
            node_name: config.node_name.clone(),
            place: config.place.clone(),
            memory: Memory::default(),
            node: watch::Sender::new(None),
        }
    }

    /// The UID of the Node, while it exists.
    #[must_use]
    pub fn node(&self) -> watch::Receiver<Option<String>> {
        self.node.subscribe()
    }

    /// Takes in what the watch of the Node says.
    pub fn notice_node(&self, event: &Event<Node>) {
        match event {
            Event::Apply(node) | Event::InitApply(node) => {
                self.node.send_replace(node.metadata.uid.clone());
            }
            Event::Delete(_) => {
                self.node.send_replace(None);
            }
            Event::Init | Event::InitDone => {}
        }
    }

    /// Takes in what the watch of the node's Pods says.
    pub fn notice_pod(&self, event: &Event<Pod>) {
        if let Event::Delete(pod) = event
            && Some(pod.name_any()) == self.place.pod
            && pod.namespace().as_ref() == Some(&self.place.namespace)
        {
            self.memory.pod_is_gone();
        }
    }

    /// Watches what only this wants to know, for ever.
    pub async fn follow(&self, health: &WatchHealth) {
        match self.place.pod {
            Some(_) => {
                let namespace = &self.place.namespace;
                self.memory
                    .follow_namespace(&self.client, namespace, health)
                    .await;
            }
            None => std::future::pending().await,
        }
    }

    /// Waits until the agent is asked to stop, or its Namespace is being deleted, and
    /// says what that means for the rules.
    pub async fn end(&self, asked: impl Future<Output = ()>) -> Leaving {
        tokio::select! {
            reason = self.memory.namespace_goes(), if self.place.pod.is_some() => {
                Leaving::ForGood(reason)
            }
            () = asked => self.memory.ask(async || self.look().await).await,
        }
    }

    async fn look(&self) -> Answer {
        let around = async {
            let Some(pod) = &self.place.pod else {
                // Run by hand: only the Node counts.
                return Answer::Stays;
            };
            let namespace = look_at_namespace(&self.client, &self.place.namespace);
            let (pod, namespace) = tokio::join!(self.look_at_daemon_set(pod), namespace);
            pod.and(namespace)
        };
        let (node, around) = tokio::join!(self.look_at_node(), around);
        node.and(around)
    }

    async fn look_at_node(&self) -> Answer {
        let nodes: Api<Node> = Api::all(self.client.clone());
        match metadata(&nodes, &self.node_name).await {
            Ok(Some(metadata)) if NodeFacts::opted_in(&metadata) => Answer::Stays,
            Ok(Some(_)) => Answer::Goes("the Node is no longer labelled highwire.dev/enabled=true"),
            Ok(None) => Answer::Goes("the Node is gone"),
            Err(answer) => answer,
        }
    }

    /// The DaemonSet of the Pod, if it has one: one whose DaemonSet was deleted with
    /// `--cascade=orphan` has none any more.
    async fn look_at_daemon_set(&self, pod: &str) -> Answer {
        let pod = match metadata(&self.pods(), pod).await {
            Ok(Some(metadata)) => metadata,
            Ok(None) => return Answer::Unknown,
            Err(answer) => return answer,
        };
        let Some(owner) = owner(&pod, "DaemonSet") else {
            return Answer::Stays;
        };
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.place.namespace);
        let words = ("the DaemonSet is gone", "the DaemonSet is being deleted");
        look_at(&sets, &owner.name, words).await
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.place.namespace)
    }

    /// Leaves the node: removes the table and the report if that is for good. If the
    /// Pod is to be replaced, leaves a Lease that lasts until the next agent is there.
    pub async fn leave(&self, leaving: Leaving, kernel: &Kernel) {
        match leaving {
            Leaving::ForNow => {
                info!("agent stops; the rules stay and traffic goes on");
                if self.is_replaced().await {
                    Reporter::bridge(&self.client, &self.place.namespace, &self.node_name).await;
                }
            }
            Leaving::ForGood(reason) => {
                info!(reason, "agent stops and removes its rules");
                if let Err(error) = kernel.apply(&Transaction::Remove).await {
                    warn!("the rules could not be removed, run `highwire-agent cleanup`: {error}");
                }
                Reporter::withdraw(&self.client, &self.place.namespace, &self.node_name).await;
            }
        }
    }

    /// Whether the Pod is being deleted and not the node shut down: then its DaemonSet
    /// makes another one.
    async fn is_replaced(&self) -> bool {
        let Some(name) = &self.place.pod else {
            return false;
        };
        matches!(
            metadata(&self.pods(), name).await,
            Ok(Some(pod)) if pod.deletion_timestamp.is_some() && owner(&pod, "DaemonSet").is_some()
        )
    }
}

/// Removes the table by hand.
///
/// # Errors
/// If nft cannot do it.
pub async fn cleanup(nft: PathBuf) -> Result<()> {
    let kernel = Kernel::new(nft);
    kernel
        .apply(&Transaction::Remove)
        .await
        .context("the table is still there")?;
    println!("table inet {} is gone", crate::ruleset::TABLE);
    Ok(())
}
