//! The endpoints of Services, kept up to date from EndpointSlices.

mod slice;
mod udp;

use std::sync::Arc;

use highwire_api::{ServiceKey, names::FOR_KUBE_PROXY};
use highwire_runtime::watch::{WatchHealth, follow, paged};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, runtime::watcher::Event};
use tokio::sync::{mpsc, watch};

pub use self::{
    slice::{Endpoint, Kept, NodeHint, Slice, State},
    udp::{EndpointIndex, Endpoints},
};

/// A port of a Service, by the name that EndpointSlices use too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name; empty if it has none.
    pub port: Arc<str>,
}

/// Follows the EndpointSlices that kube-proxy would, and sends each event, turned into an
/// `Input` by `wrap`.
pub async fn watch_slices<Input>(
    client: &Client,
    health: WatchHealth,
    sender: mpsc::Sender<Input>,
    wrap: impl Fn(Event<EndpointSlice>) -> Input,
) {
    let slices = Api::<EndpointSlice>::all(client.clone());
    let config = paged().labels(FOR_KUBE_PROXY);
    follow("EndpointSlice", slices, config, health, sender, wrap).await;
}

/// Runs `work` anew whenever it begins to be needed, and ends it when it is not. Returns if
/// it ends by itself, or if nobody can need it any more.
pub async fn while_needed(mut needed: watch::Receiver<bool>, work: impl AsyncFn()) {
    while needed.wait_for(|needed| *needed).await.is_ok() {
        tokio::select! {
            () = work() => return,
            _ = needed.wait_for(|needed| !needed) => {}
        }
    }
}
