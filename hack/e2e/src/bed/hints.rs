//! Hints of endpoints, which kube-controller-manager writes for `trafficDistribution`.

use std::collections::BTreeMap;

use anyhow::ensure;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::bed::expect::LONG;
use crate::bed::service::Svc;
use crate::lab::wait::wait_for;

/// Waits until the Service has these Pods as endpoints, each with the hint for that one zone.
///
/// When the zone of a node changes, kube-controller-manager does not work on the Services with
/// endpoints there (1.36: pkg/controller/endpointslice, `checkNodeTopologyDistribution`): their
/// endpoints keep the old zone, and its hint, until the Service or one of its Pods changes. So
/// this changes the Service; more than once if need be, because the controller may hear of that
/// before it hears of the node.
pub async fn zone_hints_are(service: &Svc, pods: &[(&str, &str)]) {
    let wanted: BTreeMap<String, Vec<String>> = pods
        .iter()
        .map(|(pod, zone)| (pod.to_string(), vec![zone.to_string()]))
        .collect();
    wait_for(&format!("hints of zones {wanted:?}"), LONG, || async {
        let seen = zone_hints(&service.slices().await?);
        if seen != wanted {
            service.touch().await?;
        }
        ensure!(seen == wanted, "{seen:?}");
        Ok(())
    })
    .await;
}

/// The zones each endpoint is meant for, by its Pod.
fn zone_hints(slices: &[EndpointSlice]) -> BTreeMap<String, Vec<String>> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let of_pods = endpoints.filter_map(|endpoint| {
        let pod = endpoint.target_ref.as_ref()?.name.clone()?;
        let hints = endpoint.hints.as_ref();
        let zones = hints.and_then(|hints| hints.for_zones.as_ref());
        let zones = zones.into_iter().flatten().map(|zone| zone.name.clone());
        Some((pod, zones.collect()))
    });
    of_pods.collect()
}
