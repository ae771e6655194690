//! Notices that somebody deletes the node's LoadBalancerNode. Without it the node is
//! not advertised, and the agent would not write it again before it has news.

use highwire_api::{
    LoadBalancerNode,
    runtime::watch::{self, WatchHealth},
};
use kube::{
    Api, Client,
    core::DeserializeGuard,
    runtime::watcher::{Config, Event},
};
use tokio::sync::mpsc;

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
        let mut presence = Presence::default();
        while let Some(event) = events.recv().await {
            let deleted = presence.absorb(&event);
            if deleted.is_some() && deletions.send(Deleted).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = noticing => {}
    }
}

/// Whether the object is there.
#[derive(Debug, Default)]
struct Presence {
    known: bool,
    /// Whether a running list has brought it.
    listed: bool,
}

impl Presence {
    /// Takes in one event of a watch on one object.
    fn absorb<T>(&mut self, event: &Event<T>) -> Option<Deleted> {
        let there = match event {
            Event::Init => {
                self.listed = false;
                self.known
            }
            Event::InitApply(_) => {
                self.listed = true;
                self.known
            }
            Event::InitDone => self.listed,
            Event::Apply(_) => true,
            Event::Delete(_) => false,
        };
        let deleted = self.known && !there;
        self.known = there;
        deleted.then_some(Deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deletions(events: &[Event<()>]) -> usize {
        let mut presence = Presence::default();
        let deleted = events.iter().filter_map(|event| presence.absorb(event));
        deleted.count()
    }

    #[test]
    fn a_deletion_is_told_once_seen_or_not() {
        use Event::{Apply, Delete, Init, InitApply, InitDone};
        assert_eq!(deletions(&[Init, InitDone]), 0, "there was none yet");
        assert_eq!(deletions(&[Init, InitDone, Apply(()), Delete(())]), 1);
        let missed = [Init, InitApply(()), InitDone, Init, InitDone];
        assert_eq!(deletions(&missed), 1, "it went while nothing was heard");
        let relisted = [Init, InitApply(()), InitDone, Init, InitApply(()), InitDone];
        assert_eq!(deletions(&relisted), 0);
    }
}
