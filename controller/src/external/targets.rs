//! Where a box sends the traffic of a Service: one address of each fitting node and family,
//! with the NodePort.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use highwire_api::{
    Family, PortKey, ServiceSpec,
    external::{Target, spec::TargetAddressType},
    service::Entrance,
};

use super::snapshot::Snapshot;
use crate::{
    decision::eligibility::Eligible,
    facts::node::{NodeFacts, NodeReady, OfType, address_types},
};

/// Whether load balancers may send traffic to the node (KEP-1143, and as k8s.io/cloud-provider
/// `getNodeConditionPredicate` has it). kube-proxy serves NodePorts on nodes that have not
/// opted in too.
fn fits(node: &NodeFacts, ignore_exclude_label: bool) -> bool {
    node.departure.is_none()
        && node.ready != NodeReady::NotReady
        && (ignore_exclude_label || !node.exclude_label)
}

/// The targets of each port, sorted: at its NodePort, or at its own number, where the agents
/// of nodes serve it. `known` are the addresses that it has as targets already.
#[must_use]
pub fn targets(
    spec: &ServiceSpec,
    snapshot: &Snapshot,
    choice: TargetAddressType,
    ignore_exclude_label: bool,
    known: &BTreeSet<IpAddr>,
) -> BTreeMap<PortKey, Vec<Target>> {
    let serving = snapshot.serving.get(&spec.key);
    let serves = |name: &str, node: &NodeFacts| match serving.map(|nodes| nodes.get(name)) {
        None | Some(Some(Eligible::AllPorts)) => true,
        // Nothing is known yet of what it has seen: it goes on with what it had.
        Some(Some(Eligible::Retained)) => {
            let mut addresses = node.internal.iter().chain(&node.external);
            addresses.any(|address| known.contains(address))
        }
        Some(None) => false,
    };
    let fitting = snapshot.nodes.iter().filter(|(name, node)| {
        fits(node, ignore_exclude_label)
            && spec.node_selector.matches(&node.labels)
            && serves(name, node)
    });
    let (mut fitting, silent): (Vec<_>, Vec<_>) =
        fitting.partition(|(name, _)| !snapshot.silent.contains(*name));
    // Its node may be dead, which the Node says much later. If all are silent, none is worse.
    if fitting.is_empty() {
        fitting = silent;
    }
    let mut addresses = BTreeSet::new();
    for family in spec.cluster_ips.families() {
        let answering = fitting
            .iter()
            .filter(|(name, _)| snapshot.answers(&spec.key, family, name));
        let of_type = |of_type: &OfType| {
            let first = answering.clone().filter_map(|(_, node)| {
                let mut all = of_type(node).iter().copied();
                all.find(|address| Family::of(*address) == family)
            });
            first.collect::<Vec<_>>()
        };
        let mut chosen = address_types(choice.into()).iter().map(of_type);
        let chosen = chosen.find(|found| !found.is_empty());
        addresses.extend(chosen.into_iter().flatten());
    }
    let ports = spec.ports.iter().map(|(port, of_port)| {
        let number = match spec.entrance {
            Entrance::NodePort => of_port.node_port,
            Entrance::ClusterIp => Some(port.port),
        };
        let targets = addresses.iter().filter_map(|address| {
            Some(Target {
                address: *address,
                port: number?.get(),
            })
        });
        (*port, targets.collect())
    });
    ports.collect()
}
