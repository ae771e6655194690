//! Who on this host has a port already, besides the Services we serve.
//!
//! Rule 1 of the arbitration: the host wins. A Service's own Pod is no conflict:
//! an ingress controller in hostNetwork, or with a hostPort, that the Service
//! selects and whose port is the Service's target is the right one to answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use highwire_api::{
    Family, PortKey, ServiceKey, ServiceSpec,
    arbitration::{Holder, Slot},
    clients::Clients,
};

use crate::{
    host::{
        hold_down::Held,
        listeners::Listener,
        pods::LocalPod,
        service_ports::{Occupied, ServicePorts},
    },
    reserved::ReservedPorts,
};

/// What is known of the host, besides its addresses.
#[derive(Clone, Copy, Debug)]
pub struct HostFacts<'a> {
    /// Sockets that wait for clients.
    pub listeners: &'a [Listener],
    /// Those that did until just now.
    pub held: &'a [Held],
    /// What no Service gets.
    pub reserved: &'a ReservedPorts,
    /// The Pods on this node.
    pub pods: &'a BTreeMap<String, LocalPod>,
    /// What kube-proxy serves on the node for other reasons.
    pub occupied: &'a Occupied,
}

/// The addresses at which Services answer, each with the devices that have it.
pub type ServedAddresses = BTreeMap<IpAddr, BTreeSet<u32>>;

/// The host's claims on one slot. More than one can have it.
#[derive(Debug)]
enum HostUse<'a> {
    Socket(SocketAddr, u32),
    /// A socket that is gone and keeps its port.
    Held(&'a Held),
    HostPort(String),
    /// A NodePort of this Service, of that port of its.
    NodePort(ServiceKey, PortKey),
    HealthCheck(ServiceKey),
    ExternalIp(ServiceKey, IpAddr),
}

/// All slots that something on the host has.
#[derive(Debug)]
pub struct HostClaims<'a> {
    uses: BTreeMap<Slot, Vec<HostUse<'a>>>,
    reserved: &'a ReservedPorts,
    pods: &'a BTreeMap<String, LocalPod>,
}

impl<'a> HostClaims<'a> {
    /// Gathers what the host has on its served addresses.
    #[must_use]
    pub fn new(facts: &HostFacts<'a>, addresses: &ServedAddresses) -> Self {
        let served: &BTreeSet<IpAddr> = &addresses.keys().copied().collect();
        let mut uses: BTreeMap<Slot, Vec<HostUse<'a>>> = BTreeMap::new();
        let families: BTreeSet<Family> = served.iter().map(|ip| Family::of(*ip)).collect();
        let slots = |listener: &Listener| -> Vec<Slot> {
            let covered = |family: &Family| {
                let mut own = addresses
                    .iter()
                    .filter(|(ip, _)| Family::of(**ip) == *family);
                own.any(|(ip, devices)| listener.covers(*ip, devices))
            };
            let port = listener.port();
            let slot = |family| {
                Some(Slot {
                    family,
                    port: port?,
                })
            };
            let covered = families.iter().copied().filter(covered);
            covered.filter_map(slot).collect()
        };
        for listener in facts.listeners {
            for slot in slots(listener) {
                let socket = HostUse::Socket(listener.bound, listener.uid);
                uses.entry(slot).or_default().push(socket);
            }
        }
        for held in facts.held {
            for slot in slots(&held.listener) {
                // Where something listens, that decides.
                uses.entry(slot)
                    .or_insert_with(|| vec![HostUse::Held(held)]);
            }
        }
        let mut add = |family, port, by| uses.entry(Slot { family, port }).or_default().push(by);
        for pod in facts.pods.values() {
            for (port, address) in pod.ports.iter().filter_map(|port| port.host) {
                for family in &families {
                    let here =
                        address.is_none_or(|ip| Family::of(ip) == *family && served.contains(&ip));
                    if here {
                        add(*family, port, HostUse::HostPort(pod.name.clone()));
                    }
                }
            }
        }
        for (service, ports) in facts.occupied.iter() {
            add_service(service, ports, &families, served, &mut add);
        }
        Self {
            uses,
            reserved: facts.reserved,
            pods: facts.pods,
        }
    }

    /// Who has the slot, if it is anybody but the Service itself.
    #[must_use]
    pub fn holder(&self, slot: Slot, service: &ServiceSpec) -> Option<Holder> {
        if self.reserved.contains(slot.port) {
            return Some(Holder::Reserved);
        }
        let uses = self.uses.get(&slot)?;
        let mut own_sockets = None;
        uses.iter().find_map(|by| match by {
            HostUse::Socket(bound, uid) => {
                let own = own_sockets.get_or_insert_with(|| self.own_host_pod(slot.port, service));
                match (*own, &service.clients) {
                    (false, _) => Some(Holder::Socket {
                        bound: *bound,
                        uid: *uid,
                    }),
                    (true, Clients::Any) => None,
                    // Clients that other nodes have let in come to the same address and
                    // port, so no rule could tell who may enter here.
                    (true, Clients::Within(_)) => Some(Holder::OwnSocket { bound: *bound }),
                }
            }
            HostUse::Held(held) => (!held.beside.contains(&service.key)).then_some(Holder::Left {
                bound: held.listener.bound,
                uid: held.listener.uid,
            }),
            HostUse::HostPort(pod) => (!self.is_own_host_port(slot.port, pod, service))
                .then(|| Holder::HostPort { pod: pod.clone() }),
            HostUse::NodePort(owner, port) => {
                let own = *owner == service.key && *port == slot.port;
                (!own).then(|| Holder::NodePort(owner.clone()))
            }
            HostUse::HealthCheck(owner) => Some(Holder::HealthCheckNodePort(owner.clone())),
            HostUse::ExternalIp(owner, address) => {
                (*owner != service.key).then(|| Holder::ExternalIp {
                    service: owner.clone(),
                    address: *address,
                })
            }
        })
    }

    /// The ports on which something listens.
    pub fn listened(&self) -> impl Iterator<Item = PortKey> {
        let listens =
            |uses: &[HostUse<'_>]| uses.iter().any(|by| matches!(by, HostUse::Socket(..)));
        let slots = self.uses.iter().filter(move |(_, uses)| listens(uses));
        slots.map(|(slot, _)| slot.port)
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
        self.pods.values().filter(move |pod| {
            !service.selector.is_empty()
                && pod.namespace == service.key.namespace
                && service
                    .selector
                    .iter()
                    .all(|(key, value)| pod.labels.get(key) == Some(value))
        })
    }
}

/// Whether the Service sends its `port` to this `container` port of the Pod.
fn reaches(pod: &LocalPod, port: PortKey, container: PortKey, service: &ServiceSpec) -> bool {
    let target = service
        .ports
        .get(&port)
        .and_then(|p| pod.target(port.protocol, &p.target));
    target == Some(container)
}

fn add_service(
    service: &ServiceKey,
    ports: &ServicePorts,
    families: &BTreeSet<Family>,
    served: &BTreeSet<IpAddr>,
    add: &mut impl FnMut(Family, PortKey, HostUse<'static>),
) {
    for family in families {
        for (node_port, own) in &ports.node_ports {
            add(
                *family,
                *node_port,
                HostUse::NodePort(service.clone(), *own),
            );
        }
        if let Some(port) = ports.health_check {
            add(*family, port, HostUse::HealthCheck(service.clone()));
        }
    }
    for address in ports.external_ips.iter().filter(|ip| served.contains(ip)) {
        for port in &ports.ports {
            add(
                Family::of(*address),
                *port,
                HostUse::ExternalIp(service.clone(), *address),
            );
        }
    }
}

#[cfg(test)]
#[path = "claims_tests.rs"]
mod tests;
