//! How the agent stops.
//!
//! At a restart or an upgrade the rules stay and traffic goes on. They are removed only if
//! the node was opted out or Highwire is being uninstalled.

use std::path::PathBuf;

use anyhow::{Context, Result};
use highwire_api::names::{ENABLED_LABEL, ENABLED_VALUE};
use highwire_runtime::{
    uninstall::{Installation, Presence, StopReason, metadata},
    watch::WatchHealth,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, ResourceExt, runtime::watcher::Event};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    config::{Config, Place},
    facts::node::NodeFacts,
    report::writer::{extend_lease, withdraw},
    table::{Nft, TABLE, Transaction},
};

/// What decides whether the agent will be started again on this node; clones share it.
#[derive(Clone)]
pub struct Lifecycle {
    client: Client,
    node_name: String,
    place: Place,
    installation: Installation,
    /// The UID of the Node, while it exists.
    node: watch::Sender<Option<String>>,
}

impl Lifecycle {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(client: Client, config: &Config) -> Self {
        let Place { namespace, pod } = config.place.clone();
        let pod = pod.filter(|name| !name.is_empty());
        Self {
            installation: Installation::new(client.clone(), namespace, pod),
            client,
            node_name: config.node_name.clone(),
            place: config.place.clone(),
            node: watch::Sender::new(None),
        }
    }

    /// The UID of the Node, while it exists.
    #[must_use]
    pub fn node(&self) -> watch::Receiver<Option<String>> {
        self.node.subscribe()
    }

    /// Takes the Node as it is now.
    pub fn observe_node(&self, node: Option<&Node>) {
        self.node
            .send_replace(node.and_then(|node| node.metadata.uid.clone()));
    }

    /// Takes an event of the watch of the node's Pods.
    pub fn observe_pod(&self, event: &Event<Pod>) {
        if let Event::Delete(pod) = event
            && Some(pod.name_any()) == self.place.pod
            && pod.namespace().as_ref() == Some(&self.place.namespace)
        {
            self.installation.pod_was_deleted();
        }
    }

    /// Watches the Namespace. Does not return.
    pub async fn follow(&self, health: &WatchHealth) {
        self.installation.follow(health).await;
    }

    /// Waits until the agent has to stop, and returns why.
    pub async fn stop_reason(&self, asked: impl Future<Output = ()>) -> StopReason {
        let node = async || self.node_presence().await;
        self.installation.stop_reason(asked, node).await
    }

    async fn node_presence(&self) -> Presence {
        let nodes: Api<Node> = Api::all(self.client.clone());
        match metadata(&nodes, &self.node_name).await {
            Ok(Some(metadata)) if NodeFacts::opted_in(&metadata) => Presence::Present,
            Ok(Some(_)) => Presence::Gone(format!(
                "the Node is no longer labelled {ENABLED_LABEL}={ENABLED_VALUE}"
            )),
            Ok(None) => Presence::Gone("the Node is gone".to_owned()),
            Err(failure) => failure,
        }
    }

    /// Removes the table, the report and the Lease at an uninstall. If the Pod is to be
    /// replaced, leaves a Lease that lasts until the next agent runs.
    pub async fn stop(&self, reason: StopReason, nft: &Nft) {
        match reason {
            StopReason::Restart => {
                info!("agent stops; the rules stay and traffic goes on");
                if self.installation.is_replaced().await {
                    extend_lease(&self.client, &self.place.namespace, &self.node_name).await;
                }
            }
            StopReason::Uninstall(reason) => {
                info!(reason, "agent stops and removes its rules");
                if let Err(error) = nft.apply(&Transaction::Remove).await {
                    warn!("the rules could not be removed, run `highwire-agent cleanup`: {error}");
                }
                withdraw(&self.client, &self.place.namespace, &self.node_name).await;
            }
        }
    }
}

/// Removes the table by hand.
///
/// # Errors
/// If nft cannot do it.
pub async fn cleanup(nft: PathBuf) -> Result<()> {
    Nft::new(nft)
        .apply(&Transaction::Remove)
        .await
        .context("the table is still there")?;
    println!("table inet {TABLE} is gone");
    Ok(())
}
