//! Follows the five resources the controller needs and prunes what they say.

use highwire_api::{ClassPolicy, LoadBalancerNode, ServiceKey, names::FOR_KUBE_PROXY};
use highwire_runtime::watch::{WatchHealth, follow, paged};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, Resource, ResourceExt, core::DeserializeGuard, runtime::watcher::Event};
use tokio::sync::mpsc;
use tracing::warn;

use crate::index::{
    Input,
    endpoints::{SliceKey, SliceView},
    listing::Fed,
    node::{AgentReport, ExcludeLabel, LeaseView, NodeFacts},
    service::ServiceView,
};

/// Sends what the watches say, until the receiver is gone. The Leases are in `namespace`.
pub(crate) async fn run(
    client: &Client,
    namespace: &str,
    policy: ClassPolicy,
    exclude: ExcludeLabel,
    health: &WatchHealth,
    inputs: &mpsc::Sender<Input>,
) {
    let sender = || (health.clone(), inputs.clone());
    let ((h1, s1), (h2, s2), (h3, s3)) = (sender(), sender(), sender());
    let ((h4, s4), (h5, s5)) = (sender(), sender());

    let services = Api::<Service>::all(client.clone());
    let nodes = Api::<Node>::all(client.clone());
    let reports = Api::<DeserializeGuard<LoadBalancerNode>>::all(client.clone());
    let slices = Api::<EndpointSlice>::all(client.clone());
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);

    // Each ends only when the receiver is gone, and then so do the others.
    tokio::join!(
        // All of them: one that becomes a ClusterIP Service may keep a condition of ours.
        follow("Services", services, paged(), h1, s1, |event| {
            Input::Service(Fed::of(event, ServiceKey::of, |object| {
                Box::new(ServiceView::of(object, policy))
            }))
        }),
        follow("Nodes", nodes, paged(), h2, s2, |event| {
            Input::Node(fed(event, |node| NodeFacts::of(node, exclude)))
        }),
        follow("LoadBalancerNodes", reports, paged(), h3, s3, |event| {
            Input::Report(fed(event, read_report))
        }),
        follow("Leases", leases, paged(), h4, s4, |event| {
            Input::Lease(fed(event, LeaseView::of))
        }),
        follow(
            "EndpointSlices",
            slices,
            paged().labels(FOR_KUBE_PROXY),
            h5,
            s5,
            |event| Input::Slice(Fed::of(event, SliceKey::of, SliceView::of))
        ),
    );
}

fn fed<T: Resource, V>(event: Event<T>, view: impl Fn(&T) -> V) -> Fed<String, V> {
    Fed::of(event, ResourceExt::name_any, view)
}

/// One object that does not parse must not stop the others.
fn read_report(object: &DeserializeGuard<LoadBalancerNode>) -> AgentReport {
    match &object.0 {
        Ok(report) => AgentReport::of(report),
        Err(invalid) => {
            let node = object.name_any();
            let error = &invalid.error;
            warn!(
                node,
                "its LoadBalancerNode cannot be read, so it is not advertised: {error}"
            );
            AgentReport::unreadable(error)
        }
    }
}
