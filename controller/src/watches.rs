//! Follows the resources that the controller needs.

use highwire_api::{
    LoadBalancerNode,
    external::{ExternalLoadBalancer, LoadBalancer},
    names::FOR_KUBE_PROXY,
};
use highwire_runtime::watch::{WatchHealth, follow, paged};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, core::DeserializeGuard};
use tokio::sync::mpsc;

use crate::facts::Input;

/// Sends what the watches say, until the receiver is gone. The Leases are in `namespace`.
pub async fn run(
    client: &Client,
    namespace: &str,
    health: &WatchHealth,
    inputs: &mpsc::Sender<Input>,
) {
    let health = || health.clone();
    let inputs = || inputs.clone();
    // All of them: one that becomes a ClusterIP Service may keep a condition of ours.
    let services = Api::<Service>::all(client.clone());
    let nodes = Api::<Node>::all(client.clone());
    let reports = Api::<DeserializeGuard<LoadBalancerNode>>::all(client.clone());
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);
    let slices = Api::<EndpointSlice>::all(client.clone());
    let externals = Api::<DeserializeGuard<ExternalLoadBalancer>>::all(client.clone());
    let load_balancers = Api::<DeserializeGuard<LoadBalancer>>::all(client.clone());
    let for_kube_proxy = paged().labels(FOR_KUBE_PROXY);
    // Each ends only when the receiver is gone, and then so do the others.
    tokio::join!(
        follow("Services", services, paged(), health(), inputs(), |event| {
            Input::Service(Box::new(event))
        }),
        follow("Nodes", nodes, paged(), health(), inputs(), |event| {
            Input::Node(Box::new(event))
        }),
        follow(
            "LoadBalancerNodes",
            reports,
            paged(),
            health(),
            inputs(),
            |event| { Input::Report(Box::new(event)) }
        ),
        follow("Leases", leases, paged(), health(), inputs(), |event| {
            Input::Lease(Box::new(event))
        }),
        follow(
            "EndpointSlices",
            slices,
            for_kube_proxy,
            health(),
            inputs(),
            |event| { Input::Endpoints(Box::new(event)) }
        ),
        follow(
            "ExternalLoadBalancers",
            externals,
            paged(),
            health(),
            inputs(),
            |event| { Input::External(Box::new(event)) }
        ),
        follow(
            "LoadBalancers",
            load_balancers,
            paged(),
            health(),
            inputs(),
            |event| { Input::LoadBalancer(Box::new(event)) }
        ),
    );
}
