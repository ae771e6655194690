//! Whether a program that is asked to stop will be back, or goes for good: what it did
//! to its node or to Services may stay in the one case and must go in the other.
//!
//! Two sources say so. While it runs, a program watches its own Namespace: a watch that
//! is open outlives the rights it was opened with, and `kubectl delete -f deploy` takes
//! those away some 0.3 s before the Pods are asked to stop. And when it is asked to stop
//! it looks at its own Pod and the Pod's owner. The owner is not watched: a DaemonSet's
//! status changes with every Pod, which would be an event per node for every node.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::{
    api::core::v1::Namespace,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, Client, Resource, runtime::watcher::Event};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::info;

use crate::watch::{WatchHealth, follow, paged};

/// How long the API server is waited for before everything is left as it is. It may be
/// restarting; beyond that, a reboot of the only control-plane node should not wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How long one answer is waited for.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);

/// How long after an answer that decides nothing the next question comes.
const AGAIN: Duration = Duration::from_secs(1);

/// So many times in a row, a second apart, 401 has to be the answer to mean that the
/// ServiceAccount is gone. One alone may come from an API server that has just started
/// or does not know the Pod yet; 5 s are longer than that lasts and far shorter than
/// what a Pod may take to stop.
const UNAUTHORIZED: u32 = 5;

/// The finalizer of an object that is deleted with `--cascade=orphan`.
const ORPHAN_FINALIZER: &str = "orphan";

/// Why a program stops, as far as what it leaves behind is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It will be back, or nobody can tell: everything stays.
    ForNow,
    /// It will not: everything goes.
    ForGood(&'static str),
}

/// What a look at an object that decides said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing goes for good.
    Stays,
    /// The program goes for good, and why.
    Goes(&'static str),
    /// 401: the token is not valid.
    Unauthorized,
    /// No answer, or none that says anything.
    Unknown,
}

impl Answer {
    fn of(object: Option<&ObjectMeta>, (gone, going): (&'static str, &'static str)) -> Self {
        match object {
            None => Self::Goes(gone),
            Some(metadata) if is_going(metadata) => Self::Goes(going),
            Some(_) => Self::Stays,
        }
    }

    /// What a failed question says.
    fn failed(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 401 => Self::Unauthorized,
            _ => Self::Unknown,
        }
    }

    /// One answer of two: who says that the program goes, is right; else nothing is
    /// certain unless both say so.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        use Answer::{Goes, Stays, Unauthorized, Unknown};
        match (self, other) {
            (Goes(reason), _) | (_, Goes(reason)) => Goes(reason),
            (Unauthorized, _) | (_, Unauthorized) => Unauthorized,
            (Stays, Stays) => Stays,
            (Unknown, _) | (_, Unknown) => Unknown,
        }
    }
}

/// Whether an object is being deleted together with what it owns.
#[must_use]
pub fn is_going(metadata: &ObjectMeta) -> bool {
    let orphans = |finalizers: &Vec<String>| finalizers.iter().any(|it| it == ORPHAN_FINALIZER);
    metadata.deletion_timestamp.is_some() && !metadata.finalizers.as_ref().is_some_and(orphans)
}

/// The controller that owns an object, if it is of this kind. A Pod that was orphaned has
/// none.
#[must_use]
pub fn owner<'a>(metadata: &'a ObjectMeta, kind: &str) -> Option<&'a OwnerReference> {
    let mut owners = metadata.owner_references.iter().flatten();
    let controls = |owner: &&OwnerReference| owner.controller == Some(true) && owner.kind == kind;
    owners.find(controls)
}

/// What answers one after the other come to.
#[derive(Debug, Default)]
pub struct Inquiry {
    unauthorized: u32,
}

impl Inquiry {
    /// Takes an answer in; says what it comes to, unless nothing yet. `explained` is
    /// whether there is another reason for a 401 than that the ServiceAccount is gone.
    pub fn hear(&mut self, answer: Answer, explained: bool) -> Option<Leaving> {
        self.unauthorized = match answer {
            Answer::Unauthorized if !explained => self.unauthorized + 1,
            _ => 0,
        };
        match answer {
            Answer::Stays => Some(Leaving::ForNow),
            Answer::Goes(reason) => Some(Leaving::ForGood(reason)),
            Answer::Unauthorized if self.unauthorized >= UNAUTHORIZED => {
                Some(Leaving::ForGood("the ServiceAccount is gone"))
            }
            Answer::Unauthorized | Answer::Unknown => None,
        }
    }
}

/// What a running program has seen of its own end; clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    namespace: watch::Sender<Option<&'static str>>,
    pod_gone: watch::Sender<bool>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            namespace: watch::Sender::new(None),
            pod_gone: watch::Sender::new(false),
        }
    }
}

impl Memory {
    /// Waits until the Namespace is being deleted, which nothing can undo. Returns why
    /// that means going for good.
    pub async fn namespace_goes(&self) -> &'static str {
        let mut namespace = self.namespace.subscribe();
        loop {
            if let Some(reason) = *namespace.borrow_and_update() {
                return reason;
            }
            // The sender lives as long as this does.
            let _ = namespace.changed().await;
        }
    }

    /// The Pod's object is gone although the program runs: it was deleted by force. Its
    /// token is no longer valid, which then says nothing about the ServiceAccount.
    pub fn pod_is_gone(&self) {
        self.pod_gone.send_replace(true);
    }

    /// Whether the program goes for good: what it has seen, or else what `look` finds,
    /// which is asked again and again until it finds anything. Everything stays if there
    /// is no answer in time.
    pub async fn ask(&self, look: impl AsyncFn() -> Answer) -> Leaving {
        self.ask_within(ANSWER_LIMIT, look).await
    }

    async fn ask_within(&self, limit: Duration, look: impl AsyncFn() -> Answer) -> Leaving {
        let end = Instant::now() + limit;
        let asking = async {
            let mut inquiry = Inquiry::default();
            loop {
                let answer = look().await;
                if let Some(leaving) = inquiry.hear(answer, *self.pod_gone.borrow()) {
                    return leaving;
                }
                sleep(AGAIN).await;
            }
        };
        tokio::select! {
            biased;
            reason = self.namespace_goes() => Leaving::ForGood(reason),
            leaving = asking => leaving,
            () = sleep_until(end) => {
                info!("no answer whether this is for good");
                Leaving::ForNow
            }
        }
    }

    /// Watches the Namespace of that name, for ever.
    pub async fn follow_namespace(&self, client: &Client, name: &str, health: &WatchHealth) {
        let (sender, mut events) = mpsc::channel::<Event<Namespace>>(16);
        let own = paged().fields(&format!("metadata.name={name}"));
        let api = Api::<Namespace>::all(client.clone());
        let remembering = async {
            while let Some(event) = events.recv().await {
                let goes = match event {
                    Event::Apply(object) | Event::InitApply(object) => {
                        object.metadata.deletion_timestamp.is_some()
                    }
                    Event::Delete(_) => true,
                    Event::Init | Event::InitDone => false,
                };
                if goes {
                    let reason = "the Namespace is being deleted";
                    self.namespace.send_replace(Some(reason));
                }
            }
        };
        tokio::select! {
            () = follow("Namespace", api, own, health.clone(), sender, |event| event) => {}
            () = remembering => {}
        }
    }
}

/// What an object says whose end is the program's; `words` say why, if it is gone and if
/// it is being deleted.
pub async fn look_at<K>(api: &Api<K>, name: &str, words: (&'static str, &'static str)) -> Answer
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    match metadata(api, name).await {
        Ok(found) => Answer::of(found.as_ref(), words),
        Err(answer) => answer,
    }
}

/// What the program's Namespace says.
pub async fn look_at_namespace(client: &Client, name: &str) -> Answer {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let words = ("the Namespace is gone", "the Namespace is being deleted");
    look_at(&namespaces, name, words).await
}

/// An object that does not decide by itself, such as the program's own Pod: its
/// metadata, `None` if it is not there.
///
/// # Errors
/// What it says that there is no answer.
pub async fn metadata<K>(api: &Api<K>, name: &str) -> Result<Option<ObjectMeta>, Answer>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    match timeout(QUESTION_TIMEOUT, api.get_metadata_opt(name)).await {
        Ok(Ok(found)) => Ok(found.map(|found| found.metadata)),
        Ok(Err(error)) => Err(Answer::failed(&error)),
        Err(_) => Err(Answer::Unknown),
    }
}

#[cfg(test)]
#[path = "leaving_tests.rs"]
mod tests;
