//! Which Pods a Service's traffic may reach.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::world::{Node, Pod, Port, Service, World};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address.
    pub v6: IpAddr,
}

impl Client {
    /// Its address of a family.
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }
    }

    /// Whether the Service's source ranges let it in. Ranges of one family admit nobody of
    /// the other.
    pub fn may_enter(&self, service: &Service, v6: bool) -> bool {
        let address = self.address(v6);
        let mut ranges = service.ranges.iter();
        service.ranges.is_empty() || ranges.any(|range| range.contains(&address))
    }
}

impl Pod {
    /// Whether the Service selects it.
    pub fn is_selected_by(&self, service: &Service) -> bool {
        let mut wanted = service.selector.iter();
        !service.selector.is_empty()
            && self.namespace == service.namespace
            && wanted.all(|(key, value)| self.labels.get(key) == Some(value))
    }

    /// Whether it is an endpoint of the Service in that family.
    fn is_endpoint_of(&self, service: &Service, v6: bool) -> bool {
        (self.ready || service.publishes_not_ready)
            && self.is_selected_by(service)
            && self.addresses.iter().any(|address| address.is_ipv6() == v6)
    }
}

/// The Service's ready Pods in that family, on that node alone if one is named.
pub fn ready_pods<'a>(
    world: &'a World,
    service: &'a Service,
    v6: bool,
    on: Option<&'a Node>,
) -> impl Iterator<Item = &'a Pod> {
    let pods = world.pods.iter();
    pods.filter(move |pod| pod.is_endpoint_of(service, v6))
        .filter(move |pod| on.is_none_or(|node| node.name == pod.node))
}

/// What may answer at a port of the Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// The Pods that listen there.
    pub(super) pods: BTreeSet<String>,
    /// Whether there is an endpoint that does not listen there.
    pub(super) some_refuse: bool,
}

/// Who answers for a port of the Service to clients outside that come by that node.
pub(super) fn answers(
    world: &World,
    service: &Service,
    port: &Port,
    v6: bool,
    node: &Node,
) -> Answers {
    let on = service.external_local.then_some(node);
    let mut answers = Answers::default();
    for pod in ready_pods(world, service, v6, on) {
        if pod.ports.contains(&(port.protocol, port.target)) {
            answers.pods.insert(pod.name.clone());
        } else {
            answers.some_refuse = true;
        }
    }
    answers
}
