//! Notices that somebody deletes the node's LoadBalancerNode. Without it the node is
//! not advertised, and the agent would not write it again before it has news.

use highwire_api::LoadBalancerNode;
use highwire_runtime::watch::{self, WatchHealth};
use kube::{
    Api, Client, Resource,
    core::DeserializeGuard,
    runtime::watcher::{Config, Event},
};
use tokio::sync::mpsc;

use highwire_runtime::mirror::Mirror;

/// The node's LoadBalancerNode was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted;

/// Sends every deletion, until the receiver is gone. `own_node` selects the one
/// object by its name.
pub async fn follow(
    client: &Client,
    own_node: Config,
    health: &WatchHealth,
    deletions: mpsc::Sender<Deleted>,
) {
    let (sender, mut events) = mpsc::channel(16);
    // Whatever it says: who can't read it may still see it go.
    let api = Api::<DeserializeGuard<LoadBalancerNode>>::all(client.clone());
    let watching = watch::follow(
        "LoadBalancerNode",
        api,
        own_node,
        health.clone(),
        sender,
        |event| event,
    );
    let noticing = async {
        let mut there = Mirror::default();
        while let Some(event) = events.recv().await {
            if is_deletion(&mut there, event) && deletions.send(Deleted).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = noticing => {}
    }
}

/// Whether the event makes the one object of a watch go.
fn is_deletion<T: Resource>(there: &mut Mirror<()>, event: Event<T>) -> bool {
    let is_there = |mirror: &Mirror<()>| mirror.known().is_some_and(|known| !known.is_empty());
    let was_there = is_there(there);
    there.absorb(event, |_| Some(()));
    was_there && !is_there(there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;

    fn deletions<const N: usize>(events: [Event<Node>; N]) -> usize {
        let mut there = Mirror::default();
        let deletions = events.map(|event| is_deletion(&mut there, event));
        deletions.into_iter().filter(|deletion| *deletion).count()
    }

    #[test]
    fn a_deletion_is_told_once_seen_or_not() {
        use Event::{Apply, Delete, Init, InitApply, InitDone};
        let n1 = Node::default;
        assert_eq!(deletions([Init, InitDone]), 0, "there was none yet");
        assert_eq!(deletions([Init, InitDone, Apply(n1()), Delete(n1())]), 1);
        let missed = [Init, InitApply(n1()), InitDone, Init, InitDone];
        assert_eq!(deletions(missed), 1, "it went while nothing was heard");
        let listed = || [Init, InitApply(n1()), InitDone];
        let [a, b, c] = listed();
        let [d, e, f] = listed();
        assert_eq!(deletions([a, b, c, d, e, f]), 0);
    }
}
