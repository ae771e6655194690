//! Whether this controller will be back when it is asked to stop.

use std::sync::{Arc, OnceLock};

use highwire_runtime::{
    leaving::{Answer, Leaving, Memory, look_at, look_at_namespace, metadata, owner},
    watch::WatchHealth,
};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{Api, Client, Resource, core::NamespaceResourceScope};

use crate::config::Place;

/// Its Pod, whose ReplicaSet's Deployment decides; clones share what was seen.
#[derive(Clone)]
pub(crate) struct Tenure {
    client: Client,
    place: Place,
    memory: Memory,
    deployment: Arc<OnceLock<String>>,
}

impl Tenure {
    /// Nothing is known yet.
    pub(crate) fn new(client: Client, place: Place) -> Self {
        Self {
            client,
            place,
            memory: Memory::default(),
            deployment: Arc::default(),
        }
    }

    /// Watches the Namespace, for ever.
    pub(crate) async fn follow(&self, health: &WatchHealth) {
        match self.place.pod {
            Some(_) => {
                // Later the ReplicaSet may be gone, which knows the Deployment's name.
                self.look().await;
                let namespace = &self.place.namespace;
                self.memory
                    .follow_namespace(&self.client, namespace, health)
                    .await;
            }
            None => std::future::pending().await,
        }
    }

    /// Waits until the controller is asked to stop, or its Namespace is being deleted,
    /// and says what that means for what it wrote.
    pub(crate) async fn end(&self, asked: impl Future<Output = ()>) -> Leaving {
        tokio::select! {
            reason = self.memory.namespace_goes(), if self.place.pod.is_some() => {
                Leaving::ForGood(reason)
            }
            () = asked => self.memory.ask(async || self.look().await).await,
        }
    }

    /// Whether Highwire is being removed, by one look.
    pub(crate) async fn goes(&self) -> bool {
        matches!(self.look().await, Answer::Goes(_))
    }

    async fn look(&self) -> Answer {
        let Some(pod) = &self.place.pod else {
            // Run by hand: it may always be back.
            return Answer::Stays;
        };
        let namespace = look_at_namespace(&self.client, &self.place.namespace);
        let (pod, namespace) = tokio::join!(self.look_at_deployment(pod), namespace);
        pod.and(namespace)
    }

    async fn look_at_deployment(&self, pod: &str) -> Answer {
        let pods: Api<Pod> = self.own();
        let set = match metadata(&pods, pod).await {
            Ok(Some(pod)) => match owner(&pod, "ReplicaSet") {
                Some(owner) => owner.name.clone(),
                None => return Answer::Stays,
            },
            Ok(None) => return Answer::Unknown,
            Err(answer) => return answer,
        };
        let sets: Api<ReplicaSet> = self.own();
        let deployment = match metadata(&sets, &set).await {
            Ok(Some(set)) => match owner(&set, "Deployment") {
                Some(owner) => owner.name.clone(),
                None => return Answer::Stays,
            },
            // Its Deployment may be there all the same: it does not keep every old one.
            Ok(None) => match self.deployment.get() {
                Some(known) => known.clone(),
                None => return Answer::Unknown,
            },
            Err(answer) => return answer,
        };
        // The first to be known is as good as any other.
        let _ = self.deployment.set(deployment.clone());
        let deployments: Api<Deployment> = self.own();
        let words = ("the Deployment is gone", "the Deployment is being deleted");
        look_at(&deployments, &deployment, words).await
    }

    fn own<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.place.namespace)
    }
}
