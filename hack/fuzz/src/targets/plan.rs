//! What an agent decides about Services, its Node, Pods, addresses and listeners, any of them;
//! what it reports and explains; and what it gives the kernel. The laws of the design.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use highwire_agent::{
    config::Policy,
    decide::{Decision, Target, decide, for_report},
    explain::node::explain,
    facts::{
        Facts,
        addresses::HostAddress,
        endpoints::{Kept, Slice, State},
        listener_history::{Held, Listeners},
        listeners::Listener,
        node::NodeFacts,
        pods::LocalPod,
        service_proxy::ServiceProxy,
        services::{ServiceFacts, Services},
        sysctls::Sysctls,
    },
    metrics::Metrics,
    report::Report,
    table::{DataPath, Elements, Transaction},
};
use highwire_api::{
    ClassPolicy, Family, PortKey, Protocol, ResourceVersion, ServiceKey,
    advertised::Advertised,
    arbitration::Slot,
    clients::Clients,
    node::{LONGEST_HELD_BY, MOST_CONFLICTS, ProxyMode},
    service::{Entrance, TrafficPolicy},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{ResourceExt as _, runtime::watcher::Event};
use serde::Deserialize;

use super::cluster::could_be;
use crate::{plain::assert_plain, surfaces};

/// The node that it is.
const NODE: &str = "n1";
/// More objects than that show nothing new.
const MOST: usize = 32;
/// The combinations of a port and a network that a node takes (agent/src/decide/source_ranges.rs).
const MOST_RANGES_ON_NODE: usize = 10_000;

/// What an input holds.
#[derive(Deserialize)]
struct World {
    node: Node,
    #[serde(default)]
    services: Vec<Service>,
    #[serde(default)]
    pods: Vec<Pod>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    #[serde(default)]
    listeners: Vec<Bound>,
    #[serde(default)]
    held: Vec<Bound>,
    /// The reserved ports, as the flag has them.
    #[serde(default)]
    reserved: String,
    /// If there is no kube-proxy.
    #[serde(default, rename = "endpointSlices")]
    slices: Option<Vec<EndpointSlice>>,
    /// What nft said of Services that it refuses.
    #[serde(default, rename = "leftOut")]
    left_out: BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
struct Bound {
    to: SocketAddr,
    #[serde(default)]
    udp: bool,
    #[serde(default, rename = "v6Only")]
    v6_only: bool,
    #[serde(default)]
    uid: u32,
    /// A Service that was served beside it.
    #[serde(default)]
    beside: Option<String>,
}

impl Bound {
    fn listener(&self) -> Listener {
        Listener {
            protocol: if self.udp {
                Protocol::Udp
            } else {
                Protocol::Tcp
            },
            bound: self.to,
            v6_only: self.v6_only,
            device: None,
            uid: self.uid,
            inode: self.uid,
        }
    }
}

/// The facts of a world.
struct Known {
    services: BTreeMap<String, ServiceFacts>,
    node: NodeFacts,
    addresses: Vec<HostAddress>,
    pods: BTreeMap<String, LocalPod>,
    listeners: Listeners,
    slices: Option<BTreeMap<String, Slice>>,
    policy: Policy,
    left_out: BTreeMap<ServiceKey, String>,
}

impl Known {
    /// `None` if the API server would not have let it in.
    fn of(world: &World) -> Option<Self> {
        let services = world.services.iter().map(|it| &it.metadata);
        let pods = world.pods.iter().map(|it| &it.metadata);
        if !services.chain(pods).all(could_be) || world.services.len() > MOST {
            return None;
        }
        let mut known = Services::new(ClassPolicy::default());
        let listed = world.services.iter().cloned().map(Event::InitApply);
        for event in [Event::Init]
            .into_iter()
            .chain(listed)
            .chain([Event::InitDone])
        {
            known.absorb(event);
        }
        let left_out = world.left_out.iter();
        let held = world.held.iter().map(|it| Held {
            listener: it.listener(),
            beside: it
                .beside
                .iter()
                .filter_map(|key| key.parse().ok())
                .collect(),
        });
        let pods = world.pods.iter().take(MOST).filter_map(LocalPod::of);
        Some(Self {
            services: known.known()?.clone(),
            node: NodeFacts::of(&world.node),
            addresses: world
                .addresses
                .iter()
                .take(MOST)
                .map(|it| address(*it))
                .collect(),
            pods: pods.map(|pod| (pod.name.clone(), pod)).collect(),
            listeners: Listeners {
                open: world
                    .listeners
                    .iter()
                    .take(MOST)
                    .map(Bound::listener)
                    .collect(),
                held: held.take(MOST).collect(),
            },
            slices: world.slices.as_ref().map(|all| slices(all)),
            policy: Policy {
                reserved_ports: world.reserved.parse().ok()?,
                ..Policy::default()
            },
            left_out: left_out
                .filter_map(|(key, why)| Some((key.parse().ok()?, why.clone())))
                .collect(),
        })
    }

    fn decide(&self) -> Decision {
        decide(&Facts {
            services: &self.services,
            node: &self.node,
            addresses: &self.addresses,
            pods: &self.pods,
            listeners: &self.listeners,
            sysctls: &Sysctls {
                forwarding: Family::ALL.into(),
                ..Sysctls::default()
            },
            proxy: &ServiceProxy {
                mode: Some(self.proxy_mode()),
                failing: None,
            },
            slices: self.slices.as_ref(),
            policy: &self.policy,
            left_out: &self.left_out,
        })
    }

    fn proxy_mode(&self) -> ProxyMode {
        match self.slices {
            Some(_) => ProxyMode::Absent,
            None => ProxyMode::Nftables,
        }
    }

    /// The same, read from the kernel in another order.
    fn turned_round(&mut self) {
        self.addresses.reverse();
        self.listeners.open.reverse();
        self.listeners.held.reverse();
    }

    /// The Services' statuses say what was decided.
    fn advertise(&mut self, decision: &Decision) {
        for facts in self.services.values_mut() {
            let Some(ours) = &mut facts.ours else {
                continue;
            };
            let ports = ours.spec.ports.keys();
            let ports: Vec<_> = ports
                .map(|it| serde_json::json!({"port": it.port, "protocol": it.protocol.as_str()}))
                .collect();
            let is_served = decision.served.contains(&facts.key);
            let addresses = decision.plan.addresses.iter().filter(|_| is_served);
            let ingress: Vec<_> = addresses
                .map(|ip| serde_json::json!({"ip": ip.to_string(), "ports": ports}))
                .collect();
            let object = serde_json::json!({"status": {"loadBalancer": {"ingress": ingress}}});
            let service: Service = serde_json::from_value(object).expect("it is a Service");
            ours.advertised = Advertised::of(&service);
        }
    }
}

fn slices(all: &[EndpointSlice]) -> BTreeMap<String, Slice> {
    let read = |slice: &EndpointSlice| {
        let key = format!("{}/{}", slice.namespace()?, slice.name_any());
        could_be(&slice.metadata).then(|| Some((key, Slice::of(slice, NODE, Kept::All)?)))?
    };
    all.iter().take(MOST).filter_map(read).collect()
}

fn address(address: IpAddr) -> HostAddress {
    HostAddress {
        address,
        interface: "eth0".to_owned(),
        devices: BTreeSet::new(),
        global: true,
        on_default_route: true,
    }
}

pub(super) fn run(input: &[u8]) {
    let Ok(world) = serde_json::from_slice::<World>(input) else {
        return;
    };
    surfaces::logging_is_plain(|| judge(&world));
}

fn judge(world: &World) {
    let Some(mut known) = Known::of(world) else {
        return;
    };
    let decision = known.decide();
    all_or_nothing(&known, &decision);
    the_host_wins(&known, &decision);
    who_answers_is_picked(&known, &decision);
    caps_hold(&known, &decision);
    said_plainly(&known, &decision);
    known.turned_round();
    assert_eq!(known.decide(), decision, "in another order");
    known.advertise(&decision);
    let again = known.decide();
    assert_eq!(again.served, decision.served, "the holder keeps it");
    assert_eq!(again.plan, decision.plan, "the holder keeps it");
}

/// Each Service is served in all of its slots, refused with a reason, or not meant for the node.
fn all_or_nothing(known: &Known, decision: &Decision) {
    let addresses = &decision.plan.addresses;
    let families: BTreeSet<Family> = addresses.iter().map(|ip| Family::of(*ip)).collect();
    let mut slots = 0;
    for facts in known.services.values() {
        let is_served = decision.served.contains(&facts.key);
        let is_refused = decision.conflicts.iter().any(|it| it.service == facts.key);
        assert!(!(is_served && is_refused), "{} is both", facts.key);
        let Some(ours) = &facts.ours else {
            assert!(!is_served && !is_refused, "{} is not ours", facts.key);
            continue;
        };
        if !is_served {
            continue;
        }
        assert!(ours.spec.node_selector.matches(&known.node.labels));
        let shared = families
            .iter()
            .filter(|it| ours.spec.cluster_ips.get(**it).is_some());
        for family in shared.copied() {
            for (port, port_of) in &ours.spec.ports {
                let port = *port;
                let forward = decision.plan.forwards.get(&Slot { family, port });
                let Some(forward) = forward else {
                    // There is no NodePort to go to.
                    let is_known = known.node.primary.contains_key(&family);
                    let has_none = port_of.node_port.is_none();
                    let at_node_port = ours.spec.entrance == Entrance::NodePort;
                    assert!(
                        at_node_port && (!is_known || has_none),
                        "{port} of {}",
                        facts.key
                    );
                    continue;
                };
                assert_eq!(forward.port_name.service, facts.key);
                let all = matches!(ours.spec.clients, Clients::Any);
                assert_eq!(forward.clients.is_none(), all, "who is admitted");
                slots += 1;
            }
        }
    }
    assert_eq!(decision.plan.forwards.len(), slots, "a slot of nobody");
    assert!(
        known.node.enabled || slots == 0,
        "the node has not opted in"
    );
}

/// No slot is served that something on the host has, but beside a Service's own Pod.
fn the_host_wins(known: &Known, decision: &Decision) {
    for (slot, forward) in &decision.plan.forwards {
        let PortKey { protocol, port } = slot.port;
        let service = &forward.port_name.service;
        let is_reserved =
            protocol == Protocol::Tcp && known.policy.reserved_ports.contains(port.get());
        assert!(!is_reserved, "{port} is reserved");
        let own = decision.beside.get(&slot.port);
        let is_beside = own.is_some_and(|it| it.contains(service));
        let mut addresses = decision.plan.addresses.iter();
        let of_family = |ip: &&IpAddr| Family::of(**ip) == slot.family;
        let mut here = addresses.by_ref().filter(of_family);
        let listens = here.any(|ip| {
            let mut all = known.listeners.open.iter();
            all.any(|it| it.port() == Some(slot.port) && it.covers(*ip, &BTreeSet::new()))
        });
        assert!(!listens || is_beside, "{slot:?} has a listener");
        let node_ports = known.services.values();
        let mut others = node_ports.filter(|it| it.key != *service);
        let is_node_port = others.any(|it| {
            let ports = &it.node_ports;
            ports.node_ports.contains_key(&slot.port) || ports.health_check == Some(slot.port)
        });
        assert!(!is_node_port, "{slot:?} is a NodePort of another Service");
        let labels = |pod: &LocalPod| {
            let ours = known.services.get(&service.to_string());
            let selector = ours
                .and_then(|it| it.ours.as_ref())
                .map(|it| &it.spec.selector);
            selector.is_some_and(|all| {
                let has = |(key, value)| pod.labels.get(key) == Some(value);
                !all.is_empty() && all.iter().all(has) && *pod.namespace == *service.namespace
            })
        };
        let mut foreign = known.pods.values().filter(|pod| !labels(pod));
        let is_host_port = foreign.any(|pod| {
            let mut ports = pod.ports.iter().filter_map(|it| it.host);
            ports.any(|(port, at)| port == slot.port && at.is_none())
        });
        assert!(!is_host_port, "{slot:?} is a hostPort of another's Pod");
    }
}

/// Without a kube-proxy: only endpoints of the Service's own, on this node if its policy is
/// Local, and some if any is ready there.
fn who_answers_is_picked(known: &Known, decision: &Decision) {
    for (slot, forward) in &decision.plan.forwards {
        let Target::Backends(backends) = &forward.target else {
            assert!(known.slices.is_none(), "kube-proxy does not pick");
            continue;
        };
        let service = &forward.port_name.service;
        let ours = known.services.get(&service.to_string());
        let spec = &ours
            .and_then(|it| it.ours.as_ref())
            .expect("it is served")
            .spec;
        let is_local = spec.external_policy == TrafficPolicy::Local;
        let mut eligible = BTreeSet::new();
        let mut is_any_ready = false;
        for slice in known.slices.iter().flat_map(BTreeMap::values) {
            let ports = slice.ports.iter().filter(|it| {
                it.name == forward.port_name.port && it.protocol == slot.port.protocol
            });
            for port in ports.filter(|_| slice.service == *service) {
                let endpoints = slice.endpoints.iter();
                let of_family = endpoints.filter(|it| Family::of(it.address) == slot.family);
                for endpoint in of_family.filter(|it| it.is_here || !is_local) {
                    is_any_ready |= endpoint.state == State::Ready;
                    eligible.insert(SocketAddr::new(endpoint.address, port.number.get()));
                }
            }
        }
        assert!(backends.targets.is_subset(&eligible), "{backends:?}");
        assert!(
            backends.targets.is_disjoint(&backends.draining),
            "{backends:?}"
        );
        assert!(
            !is_any_ready || !backends.targets.is_empty(),
            "{slot:?} of {service}"
        );
        assert_eq!(backends.keeps_client, is_local);
    }
}

fn caps_hold(known: &Known, decision: &Decision) {
    let served = known
        .services
        .values()
        .filter(|it| decision.served.contains(&it.key));
    let ours = served.filter_map(|it| it.ours.as_ref());
    let ranges = ours.map(|it| match &it.spec.clients {
        Clients::Any => 0,
        Clients::Within(networks) => it.spec.ports.len() * networks.len(),
    });
    assert!(ranges.sum::<usize>() <= MOST_RANGES_ON_NODE);
    assert!(for_report(&decision.conflicts).0.len() <= MOST_CONFLICTS);
}

/// What it makes people and the kernel read.
fn said_plainly(known: &Known, decision: &Decision) {
    for mode in [known.proxy_mode(), ProxyMode::Ipvs] {
        let path = DataPath::beside(Some(mode));
        let elements = Elements::of(&decision.plan, path);
        for script in [Transaction::Replace(path, elements.clone())]
            .into_iter()
            .chain(Transaction::between(&Elements::default(), &elements))
        {
            let text = script.to_string();
            let is_known = |c: char| c == '\n' || (' '..='~').contains(&c);
            assert!(text.chars().all(is_known), "{text:?}");
        }
    }
    let report = Report {
        decision: decision.clone().into(),
        observed: ResourceVersion(7),
        ..Report::default()
    };
    let status = report.status(None, Timestamp::UNIX_EPOCH);
    for conflict in &status.conflicts {
        assert_plain("who has a port", &conflict.held_by);
        assert!(conflict.held_by.chars().count() <= LONGEST_HELD_BY);
    }
    for condition in &status.conditions {
        assert_plain("a condition", &condition.message);
    }
    report.log_changes(None);
    if let Ok(metrics) = Metrics::new() {
        report.show(&metrics);
        surfaces::check_metrics(&metrics.registry);
    }
    let explained = explain(NODE, &known.node, &known.services, &report);
    surfaces::check_explained(&explained);
}
