//! Whether a program that is asked to stop will be started again, or Highwire is being
//! uninstalled. What it wrote on its node or in Services stays in the first case and is
//! removed in the second.
//!
//! There are two sources. While it runs, a program watches its own Namespace: a watch that
//! is open goes on after its right was removed, and `kubectl delete -f deploy` removes the
//! rights some 0.3 s before the Pods are asked to stop. And when it is asked to stop, it
//! reads its own Pod and the DaemonSet or Deployment that owns it. The owner is not
//! watched: a DaemonSet's status changes with every Pod, which would be an event per node
//! for every node.

use std::{
    fmt::Debug,
    sync::{Arc, OnceLock},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind, Status},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::info;

use crate::watch::{WatchHealth, follow_object};

/// How long a stopping program waits for the API server, which may be restarting. Longer
/// would delay a reboot of the only control-plane node.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The deadline of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The pause after an answer that decides nothing.
const PAUSE: Duration = Duration::from_secs(1);

/// So many answers 401 in a row, a second apart, mean that the ServiceAccount is gone. A
/// single one may come from an API server that has just started or does not know the Pod
/// yet; 5 s are longer than that lasts and far shorter than what a Pod may take to stop.
const UNAUTHORIZED: u32 = 5;

/// The finalizer of an object that is deleted with `--cascade=orphan`.
const ORPHAN_FINALIZER: &str = "orphan";

/// Why a program stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It will be started again, or nobody knows: everything stays.
    Restart,
    /// Highwire is removed, from the cluster or from the node, for this reason.
    Uninstall(String),
}

/// Whether an object exists without which the program is not started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It does.
    Present,
    /// It does not, or it is being deleted: the text says which.
    Gone(String),
    /// 401: the token is not valid.
    Unauthorized,
    /// There was no answer, or none that says it.
    Unknown,
}

impl Presence {
    /// Reads the answer to a request for the object called `what`.
    fn of(what: &str, answer: Result<Option<ObjectMeta>, Self>) -> Self {
        match answer {
            Ok(None) => Self::Gone(format!("the {what} is gone")),
            Ok(Some(metadata)) if is_being_deleted(&metadata) => {
                Self::Gone(format!("the {what} is being deleted"))
            }
            Ok(Some(_)) => Self::Present,
            Err(failure) => failure,
        }
    }

    /// Whether both are present: one that is gone decides, and both have to be there to
    /// say that nothing is gone.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        use Presence::{Gone, Present, Unauthorized, Unknown};
        match (self, other) {
            (Gone(reason), _) | (_, Gone(reason)) => Gone(reason),
            (Unauthorized, _) | (_, Unauthorized) => Unauthorized,
            (Present, Present) => Present,
            (Unknown, _) | (_, Unknown) => Unknown,
        }
    }
}

/// Whether an object is being deleted together with what it owns.
fn is_being_deleted(metadata: &ObjectMeta) -> bool {
    let orphans = |finalizers: &Vec<String>| finalizers.iter().any(|it| it == ORPHAN_FINALIZER);
    metadata.deletion_timestamp.is_some() && !metadata.finalizers.as_ref().is_some_and(orphans)
}

/// The controller that owns an object. One that was orphaned has none.
fn owner(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    let mut owners = metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true))
}

/// Whether this says that the object is gone. A load balancer's page says nothing of any
/// object, nor does an API server that does not serve the resource yet.
fn says_gone(status: &Status, name: &str) -> bool {
    let details = status.details.as_ref();
    status.code == 404 && details.is_some_and(|details| details.name == name)
}

/// The metadata of an object, `None` if it does not exist.
///
/// # Errors
/// What a failed request says about the object's presence.
pub async fn metadata<K>(api: &Api<K>, name: &str) -> Result<Option<ObjectMeta>, Presence>
where
    K: Clone + DeserializeOwned + Debug,
{
    match timeout(REQUEST_TIMEOUT, api.get_metadata(name)).await {
        Ok(Ok(found)) => Ok(Some(found.metadata)),
        Ok(Err(kube::Error::Api(status))) if says_gone(&status, name) => Ok(None),
        Ok(Err(kube::Error::Api(status))) if status.code == 401 => Err(Presence::Unauthorized),
        Ok(Err(_)) | Err(_) => Err(Presence::Unknown),
    }
}

/// The program's own Pod, its Namespace, and the DaemonSet or Deployment that owns it;
/// clones share what was seen of them.
#[derive(Clone)]
pub struct Installation {
    client: Client,
    namespace: String,
    pod: Option<String>,
    namespace_deleted: watch::Sender<bool>,
    pod_deleted: watch::Sender<bool>,
    /// A Deployment does not keep every old ReplicaSet, by which its Pods name it.
    deployment: Arc<OnceLock<OwnerReference>>,
}

impl Installation {
    /// A program in that namespace, in that Pod, or run by hand without one.
    #[must_use]
    pub fn new(client: Client, namespace: String, pod: Option<String>) -> Self {
        Self {
            client,
            namespace,
            pod,
            namespace_deleted: watch::Sender::new(false),
            pod_deleted: watch::Sender::new(false),
            deployment: Arc::default(),
        }
    }

    /// Watches the Namespace. Does not return.
    pub async fn follow(&self, health: &WatchHealth) {
        if let Some(pod) = &self.pod {
            // While the ReplicaSet is still there.
            self.owner_presence(pod).await;
            let api = Api::<Namespace>::all(self.client.clone());
            let (sender, mut received) = mpsc::channel(1);
            let health = health.clone();
            let remembering = async {
                while let Some(namespace) = received.recv().await {
                    let deleted = Presence::of("Namespace", Ok(namespace)) != Presence::Present;
                    self.namespace_deleted
                        .send_if_modified(|known| deleted && !std::mem::replace(known, true));
                }
            };
            tokio::select! {
                () = follow_object("Namespace", api, &self.namespace, health, sender,
                    |namespace: Option<Namespace>| namespace.map(|it| it.metadata)) => {}
                () = remembering => {}
            }
        }
        std::future::pending().await
    }

    /// Notes that the Pod's object was deleted by force while the program runs. Then a 401
    /// says nothing about the ServiceAccount: the token was bound to the Pod.
    pub fn pod_was_deleted(&self) {
        self.pod_deleted.send_replace(true);
    }

    /// Waits until the program is asked to stop or its Namespace is deleted, and returns
    /// why. `other` is the presence of what else it needs to be started again.
    pub async fn stop_reason(
        &self,
        asked: impl Future<Output = ()>,
        other: impl AsyncFn() -> Presence,
    ) -> StopReason {
        let inquiry = async {
            asked.await;
            self.inquire(ANSWER_LIMIT, async || {
                let (own, other) = tokio::join!(self.presence(), other());
                own.and(other)
            })
            .await
        };
        tokio::select! {
            biased;
            reason = self.namespace_deleted() => reason,
            reason = inquiry => reason,
        }
    }

    /// Whether Highwire is being uninstalled, by one request each.
    pub async fn is_uninstalled(&self) -> bool {
        matches!(self.presence().await, Presence::Gone(_))
    }

    /// Whether the Pod is being deleted and its owner will make another one. If neither is
    /// so, the node may be shutting down.
    pub async fn is_replaced(&self) -> bool {
        let Some(name) = &self.pod else {
            return false;
        };
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        matches!(
            metadata(&pods, name).await,
            Ok(Some(pod)) if pod.deletion_timestamp.is_some() && owner(&pod).is_some()
        )
    }

    async fn namespace_deleted(&self) -> StopReason {
        // The sender lives as long as this does.
        let _ = self
            .namespace_deleted
            .subscribe()
            .wait_for(|deleted| *deleted)
            .await;
        StopReason::Uninstall("the Namespace is being deleted".to_owned())
    }

    /// Repeats the question until an answer decides, or the limit is reached.
    async fn inquire(&self, limit: Duration, ask: impl AsyncFn() -> Presence) -> StopReason {
        let end = Instant::now() + limit;
        let asking = async {
            let mut unauthorized = 0;
            loop {
                match ask().await {
                    Presence::Present => return StopReason::Restart,
                    Presence::Gone(reason) => return StopReason::Uninstall(reason),
                    Presence::Unauthorized if !*self.pod_deleted.borrow() => unauthorized += 1,
                    Presence::Unauthorized | Presence::Unknown => unauthorized = 0,
                }
                if unauthorized == UNAUTHORIZED {
                    return StopReason::Uninstall("the ServiceAccount is gone".to_owned());
                }
                sleep(PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            reason = asking => reason,
            () = sleep_until(end) => {
                info!("the API server does not say whether Highwire is being uninstalled");
                StopReason::Restart
            }
        }
    }

    async fn presence(&self) -> Presence {
        let Some(pod) = &self.pod else {
            // Run by hand: it may always be started again.
            return Presence::Present;
        };
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let (owner, namespace) = tokio::join!(
            self.owner_presence(pod),
            metadata(&namespaces, &self.namespace)
        );
        owner.and(Presence::of("Namespace", namespace))
    }

    /// The presence of the DaemonSet or Deployment above the Pod. A Pod without one was
    /// orphaned, and stays.
    async fn owner_presence(&self, pod: &str) -> Presence {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let owner_of_pod = match metadata(&pods, pod).await {
            Ok(Some(pod)) => owner(&pod).cloned(),
            Ok(None) => return Presence::Unknown,
            Err(failure) => return failure,
        };
        match owner_of_pod {
            Some(set) if set.kind == "DaemonSet" => self.presence_of(&set).await,
            Some(set) if set.kind == "ReplicaSet" => match self.owned_object(&set).await {
                Ok(Some(set)) => match owner(&set) {
                    Some(deployment) => {
                        let _ = self.deployment.set(deployment.clone());
                        self.presence_of(deployment).await
                    }
                    None => Presence::Present,
                },
                Ok(None) => match self.deployment.get() {
                    Some(deployment) => self.presence_of(deployment).await,
                    None => Presence::Unknown,
                },
                Err(failure) => failure,
            },
            _ => Presence::Present,
        }
    }

    async fn presence_of(&self, owner: &OwnerReference) -> Presence {
        Presence::of(&owner.kind, self.owned_object(owner).await)
    }

    async fn owned_object(&self, owner: &OwnerReference) -> Result<Option<ObjectMeta>, Presence> {
        // DaemonSets, ReplicaSets and Deployments are all in apps/v1.
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", &owner.kind));
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &kind);
        metadata(&api, &owner.name).await
    }
}

#[cfg(test)]
#[path = "uninstall_tests.rs"]
mod tests;
