//! Sends Events.
//!
//! Not by kube's `Recorder`: it takes two Events of one reason on one object for one,
//! so the second list of addresses would never be shown.

use std::time::Duration;

use highwire_runtime::errors::explain;
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::mpsc, time::timeout};
use tracing::warn;

use crate::{
    metrics::{Metrics, Sending},
    names::REPORTER,
    notice_text::{Announcement, Severity},
};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends what comes, until the sender is gone.
pub(crate) async fn run(
    client: Client,
    identity: String,
    metrics: Metrics,
    mut announcements: mpsc::Receiver<Announcement>,
) {
    let mut last_failure = None;
    while let Some(announcement) = announcements.recv().await {
        let events = Api::<Event>::namespaced(client.clone(), &announcement.key.namespace);
        let event = event(&announcement, &identity, Timestamp::now());
        let answer = timeout(TIMEOUT, events.create(&PostParams::default(), &event)).await;
        let failure = match answer {
            Ok(Ok(_)) => None,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                metrics.event(announcement.reason, Sending::Known);
                continue;
            }
            Ok(Err(error)) => Some(explain(&error)),
            Err(_) => Some(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        let sending = if failure.is_none() {
            Sending::Sent
        } else {
            Sending::Failed
        };
        metrics.event(announcement.reason, sending);
        if let Some(message) = failure.as_ref().filter(|_| failure != last_failure) {
            warn!(service = %announcement.key, "cannot send an Event: {message}");
        }
        last_failure = failure;
    }
}

fn event(announcement: &Announcement, identity: &str, now: Timestamp) -> Event {
    let key = &announcement.key;
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:016x}", key.name, announcement.digest)),
            namespace: Some(key.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(
            match announcement.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .to_owned(),
        ),
        reason: Some(announcement.reason.to_owned()),
        action: Some("Advertise".to_owned()),
        note: Some(announcement.note.clone()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: Some(announcement.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(identity.to_owned()),
        ..Event::default()
    }
}
