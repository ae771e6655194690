//! Reads Services and Pods as the API has them.

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::world::{Author, Condition, IngressEntry, Pod, Port, Protocol, Service};

/// The field manager of our controller.
const MANAGER: &str = "highwire-controller";

/// A Service; SCTP ports are left out.
pub(super) fn service(object: &api::Service) -> Service {
    let (metadata, spec) = (&object.metadata, object.spec.clone().unwrap_or_default());
    let is = |field: &Option<String>, value: &str| field.as_deref() == Some(value);
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let name = metadata.name.as_deref().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let ingress = status.load_balancer.and_then(|it| it.ingress);
    let ingress: Vec<IngressEntry> = ingress.iter().flatten().filter_map(entry).collect();
    let addresses = spec.cluster_ips.iter().flatten();
    let addresses = addresses.filter_map(|ip| ip.parse::<std::net::IpAddr>().ok());
    let external = spec.external_ips.iter().flatten();
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let conditions = status.conditions.into_iter().flatten().map(|it| {
        let (status, reason) = (it.status, it.reason);
        (it.type_, Condition { status, reason })
    });
    Service {
        key: format!("{namespace}/{name}"),
        namespace,
        created: metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0)
            .unwrap_or_default(),
        is_load_balancer: is(&spec.type_, "LoadBalancer") && metadata.deletion_timestamp.is_none(),
        class: spec.load_balancer_class.clone(),
        families: addresses.map(|ip| ip.is_ipv6()).collect(),
        ports: spec.ports.iter().flatten().filter_map(port).collect(),
        selector: spec.selector.clone().unwrap_or_default(),
        external_local: is(&spec.external_traffic_policy, "Local"),
        internal_local: is(&spec.internal_traffic_policy, "Local"),
        ranges: ranges.filter_map(|range| range.parse().ok()).collect(),
        external_ips: external.filter_map(|ip| ip.parse().ok()).collect(),
        publishes_not_ready: spec.publish_not_ready_addresses == Some(true),
        health_check_node_port: spec.health_check_node_port.and_then(number),
        annotations: metadata.annotations.clone().unwrap_or_default(),
        author: author(object, ingress.is_empty()),
        ingress,
        conditions: conditions.collect(),
    }
}

fn number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|it| *it != 0)
}

fn port(port: &api::ServicePort) -> Option<Port> {
    let own = number(port.port)?;
    Some(Port {
        protocol: Protocol::of(port.protocol.as_deref().unwrap_or("TCP"))?,
        port: own,
        target: match &port.target_port {
            Some(IntOrString::Int(target)) => number(*target)?,
            _ => own,
        },
        node_port: port.node_port.and_then(number),
    })
}

fn entry(entry: &api::LoadBalancerIngress) -> Option<IngressEntry> {
    let ports = entry
        .ports
        .iter()
        .flatten()
        .filter(|port| port.error.is_none());
    let ports = ports.filter_map(|port| Some((Protocol::of(&port.protocol)?, number(port.port)?)));
    Some(IngressEntry {
        ip: entry.ip.as_deref()?.parse().ok()?,
        is_vip: entry.ip_mode.as_deref() != Some("Proxy"),
        ports: ports.collect(),
    })
}

fn author(object: &api::Service, is_empty: bool) -> Author {
    let managed = object.metadata.managed_fields.iter().flatten();
    let mut managers = managed.filter(|it| {
        let fields = it.fields_v1.as_ref();
        fields.is_some_and(|fields| {
            let ingress = &fields.0["f:status"]["f:loadBalancer"]["f:ingress"];
            !ingress.is_null()
        })
    });
    match is_empty {
        true => Author::Nobody,
        false if managers.any(|it| it.manager.as_deref() == Some(MANAGER)) => Author::Highwire,
        false => Author::Other,
    }
}

/// A Pod, if it has a node and an address.
pub(super) fn pod(object: &api::Pod) -> Option<Pod> {
    let (spec, status) = (object.spec.as_ref()?, object.status.as_ref()?);
    let addresses: Vec<_> = status.pod_ips.iter().flatten().collect();
    let conditions = status.conditions.iter().flatten();
    let mut ready = conditions.filter(|it| it.type_ == "Ready" && it.status == "True");
    let all = spec
        .containers
        .iter()
        .flat_map(|it| it.ports.iter().flatten());
    let all: Vec<_> = all
        .filter_map(|it| {
            let protocol = Protocol::of(it.protocol.as_deref().unwrap_or("TCP"))?;
            let host = it.host_port.and_then(number).map(|port| (protocol, port));
            Some(((protocol, number(it.container_port)?), host))
        })
        .collect();
    (!addresses.is_empty()).then(|| Pod {
        name: object.metadata.name.clone().unwrap_or_default(),
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        node: spec.node_name.clone().unwrap_or_default(),
        addresses: addresses
            .iter()
            .filter_map(|it| it.ip.parse().ok())
            .collect(),
        ready: ready.next().is_some() && object.metadata.deletion_timestamp.is_none(),
        host_network: spec.host_network == Some(true),
        ports: all.iter().map(|(own, _)| *own).collect(),
        host_ports: all.iter().filter_map(|(_, host)| *host).collect(),
    })
}
