//! How the agent leaves a node.
//!
//! On a restart or an upgrade the rules stay and traffic goes on. Only when the
//! node has been opted out, or Highwire is being removed, they go too.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use highwire_api::names::SYSTEM_NAMESPACE;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::{Api, Client};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::{kernel::Kernel, node::NodeFacts, reporter::Reporter, ruleset::Transaction};

/// The DaemonSet the agent runs in.
const DAEMON_SET: &str = "highwire-agent";

/// How long the API server is waited for before the rules are left as they are.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the agent stops, as far as the rules are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// It will be back, or nobody can tell: the rules stay.
    ForNow,
    /// The node is out of service: the rules go.
    ForGood(&'static str),
}

/// Leaves the node: removes the table and the report only if the node was opted
/// out or Highwire is being removed.
pub async fn stop(client: &Client, kernel: &Kernel, node_name: &str) {
    match leaving(client, node_name).await {
        Leaving::ForNow => info!("agent stops; the rules stay and traffic goes on"),
        Leaving::ForGood(reason) => {
            info!(reason, "agent stops and removes its rules");
            if let Err(error) = kernel.apply(&Transaction::Remove).await {
                warn!("the rules could not be removed, run `highwire-agent cleanup`: {error}");
            }
            Reporter::withdraw(client, node_name).await;
        }
    }
}

async fn leaving(client: &Client, node_name: &str) -> Leaving {
    let nodes: Api<Node> = Api::all(client.clone());
    match timeout(ANSWER_TIMEOUT, nodes.get_opt(node_name)).await {
        Ok(Ok(None)) => return Leaving::ForGood("the Node is gone"),
        Ok(Ok(Some(node))) if !NodeFacts::of(&node).enabled => {
            return Leaving::ForGood("the Node is no longer labelled highwire.dev/enabled=true");
        }
        Ok(Ok(Some(_))) => {}
        Ok(Err(_)) | Err(_) => return Leaving::ForNow,
    }
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    match timeout(ANSWER_TIMEOUT, daemon_sets.get_opt(DAEMON_SET)).await {
        Ok(Ok(None)) => Leaving::ForGood("the DaemonSet is gone"),
        Ok(Ok(Some(set))) if set.metadata.deletion_timestamp.is_some() => {
            Leaving::ForGood("the DaemonSet is being deleted")
        }
        Ok(Ok(Some(_)) | Err(_)) | Err(_) => Leaving::ForNow,
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
