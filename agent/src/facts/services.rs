//! The Services: those of ours, and the ports that kube-proxy serves on every node for any.

use std::{collections::BTreeMap, net::IpAddr};

use highwire_api::{
    ClassPolicy, Interpretation, PortKey, Protocol, ResourceVersion, ServiceKey, ServiceSpec,
    advertised::{Advertised, ingress_of},
    ownership::Manager,
    service::interpret_on_node,
};
use highwire_runtime::mirror::{self, Mirror};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::Event;
use tracing::warn;

/// What matters of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Its namespace and name.
    pub key: ServiceKey,
    /// If it is of ours.
    pub ours: Option<Box<OurService>>,
    /// The other load balancer that serves it, though it has no class.
    pub managed_elsewhere: Option<Manager>,
    /// What kube-proxy answers for it on the nodes' own addresses.
    pub node_ports: NodePorts,
}

/// A Service of ours as last understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OurService {
    /// What it asks for.
    pub spec: ServiceSpec,
    /// What its status says it holds already.
    pub advertised: Advertised,
}

/// What kube-proxy answers for one Service on the nodes' own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePorts {
    /// From NodePort to the Service's own port.
    pub node_ports: BTreeMap<PortKey, PortKey>,
    /// `spec.healthCheckNodePort`, which is HTTP.
    pub health_check: Option<PortKey>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// The addresses in its status that kube-proxy serves (KEP-1860): other load balancers
    /// have written them, for Highwire's have `ipMode: Proxy`.
    pub balancer_ips: Vec<IpAddr>,
    /// The Service's ports, if it has either.
    pub ports: Vec<PortKey>,
}

impl NodePorts {
    /// Whether this port of the Service is also its own NodePort.
    #[must_use]
    pub fn leads_to_itself(&self, port: PortKey) -> bool {
        self.node_ports.get(&port) == Some(&port)
    }

    fn of(service: &Service) -> Self {
        let Some(spec) = &service.spec else {
            return Self::default();
        };
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let protocol = Protocol::from_service(port.protocol.as_deref())?;
            let node_port = port.node_port.and_then(|port| PortKey::new(protocol, port));
            Some((PortKey::new(protocol, port.port)?, node_port))
        });
        let external_ips = spec.external_ips.iter().flatten();
        let external_ips: Vec<IpAddr> = external_ips.filter_map(|ip| ip.parse().ok()).collect();
        let balancer_ips: Vec<IpAddr> = ingress_of(service)
            .iter()
            .filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|entry| entry.ip.as_ref()?.parse().ok())
            .collect();
        let health_check = spec.health_check_node_port;
        Self {
            node_ports: ports
                .clone()
                .filter_map(|(own, node)| Some((node?, own)))
                .collect(),
            health_check: health_check.and_then(|port| PortKey::new(Protocol::Tcp, port)),
            ports: ports
                .map(|(own, _)| own)
                .filter(|_| !external_ips.is_empty() || !balancer_ips.is_empty())
                .collect(),
            external_ips,
            balancer_ips,
        }
    }
}

/// All Services of which anything matters, and how far the agent has read.
#[derive(Debug, Default)]
pub struct Services {
    policy: ClassPolicy,
    mirror: Mirror<ServiceFacts>,
    observed: ResourceVersion,
    /// The newest version that a running (re-)list has brought so far.
    listed: ResourceVersion,
    revision: u64,
}

impl Services {
    /// None yet; they are read by `policy`.
    #[must_use]
    pub fn new(policy: ClassPolicy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// The Services by `namespace/name`; `None` until the first list is complete.
    #[must_use]
    pub fn known(&self) -> Option<&BTreeMap<String, ServiceFacts>> {
        self.mirror.known()
    }

    /// Every Service event up to this version is in here. What a list has brought counts
    /// at its end.
    #[must_use]
    pub fn observed(&self) -> ResourceVersion {
        self.observed
    }

    /// Grows whenever what some Service of ours asks for has changed; a write to a
    /// Service's status or labels leaves it as it is.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes in one watch event. Says whether anything that matters has changed.
    pub fn absorb(&mut self, event: Event<Service>) -> bool {
        let mut last = None;
        match &event {
            Event::Init => self.listed = ResourceVersion::default(),
            Event::InitApply(service) => {
                self.listed = self.listed.max(version(service));
                last = self.spec(&mirror::key(service)).cloned();
            }
            Event::InitDone => self.observed = self.observed.max(self.listed),
            Event::Apply(service) => {
                self.observed = self.observed.max(version(service));
                last = self.spec(&mirror::key(service)).cloned();
            }
            Event::Delete(service) => self.observed = self.observed.max(version(service)),
        }
        let (policy, first) = (self.policy, self.mirror.known().is_none());
        let read = |service: &Service| read(service, policy, last.clone());
        let changes = self.mirror.changes(event, read);
        let asks_anew = changes.iter().any(|change| {
            let before = change.before.as_ref().and_then(|it| it.ours.as_ref());
            before.map(|ours| &ours.spec) != self.spec(&change.key)
        });
        self.revision += u64::from(asks_anew);
        !changes.is_empty() || first && self.mirror.known().is_some()
    }

    fn spec(&self, key: &str) -> Option<&ServiceSpec> {
        Some(&self.mirror.get(key)?.ours.as_ref()?.spec)
    }
}

fn version(service: &Service) -> ResourceVersion {
    ResourceVersion::of(&service.metadata).unwrap_or_default()
}

/// What matters of a Service, if anything does. `last` is what it asked for so far.
fn read(service: &Service, policy: ClassPolicy, last: Option<ServiceSpec>) -> Option<ServiceFacts> {
    let key = ServiceKey::of(service);
    let mut managed_elsewhere = None;
    let spec = match interpret_on_node(service, policy) {
        Interpretation::Serve(spec) => Some(spec),
        Interpretation::NotOurs | Interpretation::Pending => None,
        Interpretation::ManagedElsewhere(manager) => {
            managed_elsewhere = Some(manager);
            None
        }
        Interpretation::Unsupported(problems) => {
            for problem in problems {
                warn!(service = %key, %problem, "Service is not served");
            }
            None
        }
        Interpretation::Invalid(problems) => {
            for problem in problems {
                warn!(service = %key, %problem, "Service keeps its last valid state");
            }
            last
        }
    };
    let ours = spec.map(|spec| {
        let advertised = Advertised::of(service);
        Box::new(OurService { spec, advertised })
    });
    let node_ports = NodePorts::of(service);
    let matters =
        ours.is_some() || managed_elsewhere.is_some() || node_ports != NodePorts::default();
    matters.then_some(ServiceFacts {
        key,
        ours,
        managed_elsewhere,
        node_ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(version: u64, change: impl FnOnce(&mut Value)) -> Service {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1",
                         "resourceVersion": version.to_string()},
            "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    fn synced(listed: Vec<Service>) -> Services {
        let mut index = Services::default();
        index.absorb(Event::Init);
        for service in listed {
            index.absorb(Event::InitApply(service));
        }
        assert!(
            index.known().is_none(),
            "an unfinished list is not to be acted on"
        );
        index.absorb(Event::InitDone);
        index
    }

    fn ports(index: &Services) -> Vec<String> {
        let services = index.known().unwrap().values();
        services
            .filter_map(|service| service.ours.as_ref())
            .flat_map(|ours| ours.spec.ports.keys().map(ToString::to_string))
            .collect()
    }

    fn elsewhere(index: &Services) -> usize {
        let services = index.known().unwrap().values();
        services
            .filter_map(|it| it.managed_elsewhere.as_ref())
            .count()
    }

    #[test]
    fn follows_events_and_their_versions() {
        let mut index = synced(vec![service(5, |_| {})]);
        assert_eq!(
            (ports(&index), index.observed()),
            (vec!["80/TCP".into()], ResourceVersion(5))
        );
        index.absorb(Event::Apply(service(9, |s| {
            s["spec"]["ports"][0]["port"] = json!(81)
        })));
        assert_eq!(
            (ports(&index), index.observed()),
            (vec!["81/TCP".into()], ResourceVersion(9))
        );
        index.absorb(Event::Delete(service(12, |_| {})));
        assert_eq!(
            (ports(&index), index.observed()),
            (vec![], ResourceVersion(12))
        );
    }

    #[test]
    fn only_a_change_of_what_is_asked_for_is_a_new_revision() {
        let mut index = synced(vec![service(5, |_| {})]);
        let revision = index.revision();
        index.absorb(Event::Apply(service(6, |s| {
            s["metadata"]["labels"] = json!({"a": "b"})
        })));
        assert_eq!(index.revision(), revision);
        index.absorb(Event::Apply(service(7, |s| {
            s["spec"]["ports"][0]["port"] = json!(81)
        })));
        assert_eq!(index.revision(), revision + 1);
    }

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let mut index = synced(vec![service(5, |_| {})]);
        let revision = index.revision();
        index.absorb(Event::Init);
        assert_eq!(
            ports(&index),
            ["80/TCP"],
            "a running list takes nothing away"
        );
        index.absorb(Event::InitDone);
        assert!(ports(&index).is_empty());
        assert_eq!(index.revision(), revision + 1);
    }

    #[test]
    fn a_list_counts_as_observed_at_its_end_only() {
        let mut index = synced(vec![service(5, |_| {})]);
        index.absorb(Event::Init);
        let edited = |s: &mut Value| s["spec"]["ports"][0]["port"] = json!(81);
        index.absorb(Event::InitApply(service(9, edited)));
        assert_eq!(ports(&index), ["80/TCP"]);
        assert_eq!(index.observed(), ResourceVersion(5));
        index.absorb(Event::InitDone);
        assert_eq!(ports(&index), ["81/TCP"]);
        assert_eq!(index.observed(), ResourceVersion(9));
        // A list without the newest Service does not make the version go back.
        index.absorb(Event::Init);
        index.absorb(Event::InitDone);
        assert_eq!(index.observed(), ResourceVersion(9));
    }

    #[test]
    fn a_service_that_another_load_balancer_serves_is_not_wanted() {
        let foreign = |s: &mut Value| {
            s["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.77"}]}});
        };
        let mut index = synced(vec![service(5, foreign)]);
        assert!(ports(&index).is_empty());
        assert_eq!(elsewhere(&index), 1);
        index.absorb(Event::Apply(service(6, |_| {})));
        assert_eq!(ports(&index), ["80/TCP"]);
        assert_eq!(elsewhere(&index), 0);
        let revision = index.revision();
        index.absorb(Event::Apply(service(7, foreign)));
        assert!(ports(&index).is_empty());
        assert_eq!(index.revision(), revision + 1);
    }

    #[test]
    fn an_invalid_edit_keeps_the_last_valid_state() {
        let mut index = synced(vec![service(5, |_| {})]);
        let invalid = |s: &mut Value| {
            s["metadata"]["annotations"] = json!({"highwire.dev/node-selector": "a in b"});
            s["spec"]["ports"][0]["port"] = json!(81);
        };
        index.absorb(Event::Apply(service(6, invalid)));
        assert_eq!(ports(&index), ["80/TCP"]);
        index.absorb(Event::Init);
        index.absorb(Event::InitApply(service(6, invalid)));
        index.absorb(Event::InitDone);
        assert_eq!(
            ports(&index),
            ["80/TCP"],
            "a new list does not lose it either"
        );
    }
}
