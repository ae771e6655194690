//! Events: what they say is a function of a status before and after a write.
//!
//! They are not sent by kube's `Recorder`: it takes two Events of one reason on one object
//! for one, so the second list of addresses would never be shown.

use backon::{ExponentialBuilder, Retryable};
use highwire_api::{Problem, ServiceKey, external::Trouble};
use highwire_runtime::errors::explain;
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::events::EventType::{self, Normal, Warning},
};
use tokio::sync::mpsc;
use tracing::warn;

use crate::{
    decision::{conditions::Difference, decide::Decision, serving::Serving, text},
    facts::service::{ServiceStatus, is_true},
    metrics::{Metrics, Sending},
};

/// `reportingController` of our Events.
const REPORTER: &str = "highwire.dev/controller";

/// What happened to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// Good or bad news.
    pub type_: EventType,
    /// One of a fixed set.
    pub reason: &'static str,
    /// What happened.
    pub note: String,
}

impl Happened {
    /// That, shortened to what an Event may say.
    #[must_use]
    pub fn new(type_: EventType, reason: &'static str, note: String) -> Self {
        Self {
            type_,
            reason,
            note: text::shortened(note),
        }
    }

    /// Something is wrong with the Service.
    #[must_use]
    pub fn problem(problem: &Problem) -> Self {
        // That another load balancer does its work is no trouble.
        let type_ = match problem {
            Problem::ManagedElsewhere { .. } => Normal,
            _ => Warning,
        };
        Self::new(type_, problem.reason(), problem.to_string())
    }
}

/// What a write made of the status `before`, for the owner of the Service. Changes of the
/// addresses alone are news only for a Service that was `edited` since its last ones, or
/// when they begin or end: a node that comes and goes is none of every Service's.
#[must_use]
pub fn happened(
    before: &ServiceStatus,
    written: &Difference,
    decision: &Decision,
    edited: bool,
) -> Vec<Happened> {
    let mut all: Vec<_> = ports_news(before, written, decision).into_iter().collect();
    if let Some(ingress) = &written.ingress {
        let begins_or_ends = before.listed.ingress.is_empty() != ingress.is_empty();
        if begins_or_ends || edited && before.listed.ingress != *ingress {
            let mut note = format!("Advertised at {}", text::addresses(ingress));
            note.push_str(&text::moved_ports(&decision.moved));
            if let Some(Serving::Limited(limited)) = &decision.serving {
                let (advertised, ready) = (limited.advertised, limited.ready);
                note.push_str(&format!(", at {advertised} of {ready} ready nodes"));
            }
            all.push(Happened::new(Normal, "LoadBalancerUpdated", note));
        }
    }
    all.extend(serving_news(before, written, decision));
    all
}

fn ports_news(
    before: &ServiceStatus,
    written: &Difference,
    decision: &Decision,
) -> Option<Happened> {
    let conflicts = decision.conflicts.as_ref()?;
    let condition = written.ports_error.as_ref()?;
    if is_true(Some(condition)) {
        let known = before.ports_error.as_ref().filter(|it| is_true(Some(it)));
        let new = text::new_conflicts(conflicts, known.map_or("", |it| &it.message))?;
        let note = format!("{new}; the Service is not served there");
        Some(Happened::new(Warning, "PortConflict", note))
    } else if decision.serving == Some(Serving::NotOurs) {
        None
    } else {
        let note = "No node refuses a port any more".to_owned();
        Some(Happened::new(Normal, "PortConflictResolved", note))
    }
}

fn serving_news(
    before: &ServiceStatus,
    written: &Difference,
    decision: &Decision,
) -> Vec<Happened> {
    let Some(condition) = &written.serving else {
        return Vec::new();
    };
    let known = before.serving.as_ref();
    match &decision.serving {
        Some(Serving::NoAddress(_)) if known.map(|it| &it.reason) != Some(&condition.reason) => {
            let note = condition.message.clone();
            vec![Happened::new(Warning, "NoReadyNodes", note)]
        }
        Some(Serving::External {
            trouble, message, ..
        }) if *trouble != Trouble::Waiting
            && known.map(|it| &it.reason) != Some(&condition.reason) =>
        {
            vec![Happened::new(Warning, trouble.as_str(), message.clone())]
        }
        Some(Serving::Invalid { problems, .. } | Serving::Unsupported(problems)) => {
            let is_new = |it: &&Problem| !says(known, &it.to_string());
            problems
                .iter()
                .filter(is_new)
                .map(Happened::problem)
                .collect()
        }
        _ => Vec::new(),
    }
}

fn says(condition: Option<&Condition>, problem: &str) -> bool {
    condition.is_some_and(|condition| condition.message.contains(problem))
}

/// An Event to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEvent {
    /// The Service it is about.
    pub key: ServiceKey,
    /// The Service's UID.
    pub uid: String,
    /// What happened.
    pub happened: Happened,
    /// The part of the Event's name by which the API server refuses to take it twice.
    pub id: String,
}

/// Sends what comes, until the sender is gone. The client's requests have a deadline.
pub async fn send(
    client: Client,
    identity: String,
    metrics: Metrics,
    mut events: mpsc::Receiver<ServiceEvent>,
) {
    let mut last_failure = None;
    while let Some(event) = events.recv().await {
        let api = Api::<Event>::namespaced(client.clone(), &event.key.namespace);
        let object = object(&event, &identity, Timestamp::now());
        let params = PostParams::default();
        // Three more times if there is no answer, or one of an API server that is
        // overloaded: its name is taken only once.
        let create = || async { api.create(&params, &object).await };
        let answer = create
            .retry(ExponentialBuilder::default())
            .when(|error| match error {
                kube::Error::Api(status) => matches!(status.code, 429 | 500..),
                _ => true,
            });
        let (sending, failure) = match answer.await {
            Ok(_) => (Sending::Sent, None),
            Err(kube::Error::Api(status)) if status.code == 409 => (Sending::Known, None),
            Err(error) => (Sending::Failed, Some(explain(&error))),
        };
        metrics.event(event.happened.reason, sending);
        if let Some(message) = failure.as_ref().filter(|_| failure != last_failure) {
            warn!(service = %event.key, "cannot send an Event: {message}");
        }
        last_failure = failure;
    }
}

fn object(event: &ServiceEvent, identity: &str, now: Timestamp) -> Event {
    let (key, happened) = (&event.key, &event.happened);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", key.name, event.id)),
            namespace: Some(key.namespace.to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(format!("{:?}", happened.type_)),
        reason: Some(happened.reason.to_owned()),
        action: Some("Advertise".to_owned()),
        note: Some(happened.note.clone()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            uid: Some(event.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(identity.to_owned()),
        ..Event::default()
    }
}
