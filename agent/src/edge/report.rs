//! Says in each LoadBalancer whether the box has it, and renews the box's Lease.

use std::{collections::BTreeMap, time::Duration};

use highwire_api::{
    ServiceKey,
    external::{EDGE_READY, LoadBalancer},
    names::edge_lease,
};
use highwire_runtime::errors::explain;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
};
use kube::{
    Api, Client, Resource as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{info, warn};

use crate::metrics::{Metrics, Reported};

/// The field manager of what the agent on a box writes.
const MANAGER: &str = "highwire-edge";
/// A request may take this long.
const REQUEST: Duration = Duration::from_secs(5);
/// After a request that failed.
const RETRY: Duration = Duration::from_secs(2);
/// A Lease is renewed so many times while it is good.
const RENEWALS: u32 = 3;

/// The conditions that LoadBalancers of this box should have and do not.
pub(super) type Wanted = BTreeMap<ServiceKey, Condition>;

/// The condition [`EDGE_READY`], if the one that is stated says something else.
pub(super) fn condition(
    stated: Option<&Condition>,
    generation: Option<i64>,
    trouble: Option<(&str, &str)>,
) -> Option<Condition> {
    let (status, reason, message) = match trouble {
        None => ("True", "Programmed", ""),
        Some((reason, message)) => ("False", reason, message),
    };
    let is_stated = stated.is_some_and(|stated| {
        stated.status == status
            && stated.reason == reason
            && stated.message == message
            && stated.observed_generation == generation
    });
    let since = stated.filter(|stated| stated.status == status);
    let now = || Time(Timestamp::now());
    (!is_stated).then(|| Condition {
        type_: EDGE_READY.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: since.map_or_else(now, |since| since.last_transition_time.clone()),
    })
}

/// Writes the conditions that are wanted, until the sender is gone. Each is written until it
/// is wanted no more, because it is there.
pub(super) async fn write(client: Client, mut wanted: watch::Receiver<Wanted>, metrics: Metrics) {
    let params = PatchParams::apply(MANAGER).force();
    let mut last_failure = None;
    loop {
        let now = wanted.borrow_and_update().clone();
        let mut failed = false;
        for (key, condition) in now {
            let api = Api::<LoadBalancer>::namespaced(client.clone(), &key.namespace);
            let patch = Patch::Apply(json!({
                "apiVersion": LoadBalancer::api_version(&()),
                "kind": LoadBalancer::kind(&()),
                "metadata": { "name": key.name.as_ref() },
                "status": { "conditions": [condition] },
            }));
            let request = api.patch_status(&key.name, &params, &patch);
            let failure = match timeout(REQUEST, request).await {
                Ok(Ok(_)) => None,
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => None,
                Ok(Err(error)) => Some(explain(&error)),
                Err(_) => Some("no answer from the API server".to_owned()),
            };
            if let Some(failure) = failure {
                failed = true;
                metrics.report_failed(Reported::LoadBalancer);
                if last_failure.as_ref() != Some(&failure) {
                    warn!(service = %key, "cannot report, will retry: {failure}");
                }
                last_failure = Some(failure);
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            () = sleep(RETRY), if failed => {}
        }
    }
}

/// Renews the Lease of the box `name` in this namespace for as long as this runs.
pub(super) async fn renew(
    client: Client,
    namespace: String,
    name: String,
    duration: Duration,
    metrics: Metrics,
) {
    let api = Api::<Lease>::namespaced(client, &namespace);
    let lease = edge_lease(&name);
    let params = PatchParams::apply(MANAGER).force();
    let mut renewal = interval(duration / RENEWALS);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_failure = None;
    loop {
        renewal.tick().await;
        let patch = Patch::Apply(json!({
            "apiVersion": Lease::api_version(&()),
            "kind": Lease::kind(&()),
            "metadata": { "name": lease },
            "spec": {
                "holderIdentity": name,
                "leaseDurationSeconds": duration.as_secs(),
                "renewTime": MicroTime(Timestamp::now()),
            },
        }));
        let failure = match timeout(REQUEST, api.patch(&lease, &params, &patch)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(explain(&error)),
            Err(_) => Some("no answer from the API server".to_owned()),
        };
        if failure.is_none() {
            metrics.lease_renewed.note();
        }
        match &failure {
            Some(message) => {
                metrics.report_failed(Reported::Lease);
                if failure != last_failure {
                    warn!("cannot renew the Lease {lease}, will retry: {message}");
                }
            }
            None if last_failure.is_some() => info!("the Lease {lease} is renewed again"),
            None => {}
        }
        last_failure = failure;
    }
}
