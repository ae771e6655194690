//! What on this host has a port already, besides the Services we serve.
//!
//! Rule 1 of the arbitration: the host wins. A Service's own Pod is no conflict:
//! an ingress controller in hostNetwork, or with a hostPort, that the Service
//! selects and whose port is the Service's target is the right one to answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use highwire_api::{
    Family, PortKey, Protocol, ServiceKey, ServiceSpec,
    arbitration::{Holder, Slot},
    clients::Clients,
};

use crate::facts::{
    Facts,
    addresses::HostAddress,
    listener_history::Held,
    listeners::Listener,
    pods::LocalPod,
    services::{NodePorts, ServiceFacts},
};

/// What on the host has each slot.
#[derive(Debug)]
pub(super) struct HostHolders<'a> {
    facts: &'a Facts<'a>,
    /// More than one can have a slot.
    holders: BTreeMap<Slot, Vec<Holder>>,
    /// The listeners that are gone and keep the slot. Where something listens, that decides.
    held: BTreeMap<Slot, Vec<&'a Held>>,
}

impl<'a> HostHolders<'a> {
    /// Gathers what the host has on its served `addresses`.
    pub(super) fn new(facts: &'a Facts<'a>, addresses: &BTreeSet<IpAddr>) -> Self {
        let mut gathered = Self {
            facts,
            holders: BTreeMap::new(),
            held: BTreeMap::new(),
        };
        let served = facts.addresses.iter();
        let served: Vec<_> = served
            .filter(|it| addresses.contains(&it.address))
            .collect();
        for listener in &facts.listeners.open {
            let Listener { bound, uid, .. } = *listener;
            for slot in slots(listener, &served) {
                gathered.add(slot, Holder::Socket { bound, uid });
            }
        }
        for held in &facts.listeners.held {
            for slot in slots(&held.listener, &served) {
                if !gathered.holders.contains_key(&slot) {
                    gathered.held.entry(slot).or_default().push(held);
                }
            }
        }
        let families: BTreeSet<Family> = addresses.iter().map(|ip| Family::of(*ip)).collect();
        for family in families {
            gathered.add_host_ports(family, addresses);
            for service in facts.services.values() {
                gathered.add_node_ports(family, addresses, &service.key, &service.node_ports);
            }
        }
        // Which of several is named does not depend on the order in which they were found.
        let each = gathered.holders.values_mut();
        each.for_each(|holders| holders.sort_unstable());
        let each = gathered.held.values_mut();
        each.for_each(|held| held.sort_unstable_by_key(|it| &it.listener));
        gathered
    }

    fn add(&mut self, slot: Slot, holder: Holder) {
        self.holders.entry(slot).or_default().push(holder);
    }

    fn add_host_ports(&mut self, family: Family, served: &BTreeSet<IpAddr>) {
        for pod in self.facts.pods.values() {
            for (port, address) in pod.ports.iter().filter_map(|port| port.host) {
                let here = |ip| Family::of(ip) == family && served.contains(&ip);
                if address.is_none_or(here) {
                    let pod = pod.name.clone();
                    self.add(Slot { family, port }, Holder::HostPort { pod });
                }
            }
        }
    }

    fn add_node_ports(
        &mut self,
        family: Family,
        served: &BTreeSet<IpAddr>,
        service: &ServiceKey,
        ports: &NodePorts,
    ) {
        for port in ports.node_ports.keys().copied() {
            self.add(Slot { family, port }, Holder::NodePort(service.clone()));
        }
        if let Some(port) = ports.health_check {
            let holder = Holder::HealthCheckNodePort(service.clone());
            self.add(Slot { family, port }, holder);
        }
        let here = |ip: &&IpAddr| Family::of(**ip) == family && served.contains(ip);
        for port in ports.ports.iter().copied() {
            for address in ports.external_ips.iter().filter(here).copied() {
                let service = service.clone();
                let holder = Holder::ExternalIp { service, address };
                self.add(Slot { family, port }, holder);
            }
            for address in ports.balancer_ips.iter().filter(here).copied() {
                let service = service.clone();
                let holder = Holder::LoadBalancerAddress { service, address };
                self.add(Slot { family, port }, holder);
            }
        }
    }

    /// What has the slot, if it is anything but the Service itself.
    pub(super) fn holder(&self, slot: Slot, service: &ServiceSpec) -> Option<Holder> {
        let PortKey { protocol, port } = slot.port;
        if protocol == Protocol::Tcp && self.facts.policy.reserved_ports.contains(port.get()) {
            return Some(Holder::Reserved);
        }
        let mut held = self.held.get(&slot).into_iter().flatten();
        if let Some(held) = held.find(|held| !held.beside.contains(&service.key)) {
            let Listener { bound, uid, .. } = held.listener;
            return Some(Holder::Left { bound, uid });
        }
        let mut own_socket = None;
        let holders = self.holders.get(&slot).into_iter().flatten();
        let mut others = holders.filter_map(|holder| match holder {
            Holder::Socket { bound, .. } => {
                let own = own_socket.get_or_insert_with(|| self.own_host_pod(slot.port, service));
                match (*own, &service.clients) {
                    (false, _) => Some(holder.clone()),
                    (true, Clients::Any) => None,
                    // Clients that other nodes have let in come to the same address and
                    // port, so no rule could tell who may enter here.
                    (true, Clients::Within(_)) => Some(Holder::OwnSocket { bound: *bound }),
                }
            }
            Holder::HostPort { pod } if self.is_own_host_port(slot.port, pod, service) => None,
            Holder::NodePort(owner) if *owner == service.key => {
                let own = self.facts.services.get(&owner.to_string());
                // It may lead to another port of the Service.
                let same = |own: &ServiceFacts| own.node_ports.leads_to_itself(slot.port);
                (!own.is_some_and(same)).then(|| holder.clone())
            }
            Holder::ExternalIp { service: owner, .. }
            | Holder::LoadBalancerAddress { service: owner, .. }
                if *owner == service.key =>
            {
                None
            }
            _ => Some(holder.clone()),
        });
        others.next()
    }

    /// Whether something listens on the slot.
    pub(super) fn has_listener(&self, slot: Slot) -> bool {
        let mut holders = self.holders.get(&slot).into_iter().flatten();
        holders.any(|holder| matches!(holder, Holder::Socket { .. }))
    }

    /// Whether a ready hostNetwork Pod of the Service's is what listens there.
    fn own_host_pod(&self, port: PortKey, service: &ServiceSpec) -> bool {
        self.selected(service)
            .any(|pod| pod.host_network && pod.ready && reaches(pod, port, port, service))
    }

    /// Whether this hostPort leads to what the Service would lead to.
    fn is_own_host_port(&self, port: PortKey, pod: &str, service: &ServiceSpec) -> bool {
        self.selected(service)
            .filter(|own| own.name == pod && own.ready)
            .any(|own| {
                own.ports.iter().any(|declared| {
                    declared.host.is_some_and(|(host, _)| host == port)
                        && reaches(own, port, declared.container, service)
                })
            })
    }

    fn selected(&self, service: &ServiceSpec) -> impl Iterator<Item = &LocalPod> {
        self.facts.pods.values().filter(move |pod| {
            let mut wanted = service.selector.iter();
            !service.selector.is_empty()
                && *pod.namespace == *service.key.namespace
                && wanted.all(|(key, value)| pod.labels.get(key) == Some(value))
        })
    }
}

/// The slots that a listener has: its port in each family of which it covers an address.
pub(crate) fn slots(listener: &Listener, served: &[&HostAddress]) -> BTreeSet<Slot> {
    let covered = served
        .iter()
        .filter(|own| listener.covers(own.address, &own.devices));
    let slot = |own: &&HostAddress| {
        Some(Slot {
            family: Family::of(own.address),
            port: listener.port()?,
        })
    };
    covered.filter_map(slot).collect()
}

/// Whether the Service sends its `port` to this `container` port of the Pod.
fn reaches(pod: &LocalPod, port: PortKey, container: PortKey, service: &ServiceSpec) -> bool {
    let target = service
        .ports
        .get(&port)
        .and_then(|p| pod.target(port.protocol, &p.target));
    target == Some(container)
}

#[cfg(test)]
#[path = "host_holders_tests.rs"]
mod tests;
