//! The Services of ours, kept up to date from watch events.

use std::collections::BTreeMap;

use highwire_api::{
    ClassPolicy, Interpretation, ResourceVersion, ServiceKey, holdings::Holdings,
    ownership::Manager, service::interpret,
};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::Event;
use tracing::warn;

use crate::{
    decide::Wanted,
    host::service_ports::{Occupied, ServicePorts},
};

/// All Services this agent may have to serve, the ports of all others, and how
/// far it has read.
#[derive(Debug, Default)]
pub struct ServiceIndex {
    policy: ClassPolicy,
    known: Known,
    /// What a running (re-)list has brought so far; replaces `known` at its end.
    listing: Option<Known>,
    synced: bool,
    revision: u64,
}

/// What there is to know of a set of Services.
#[derive(Debug, Default)]
struct Known {
    wanted: BTreeMap<ServiceKey, Wanted>,
    elsewhere: BTreeMap<ServiceKey, Manager>,
    occupied: Occupied,
    /// Every Service event up to this version is in here.
    observed: ResourceVersion,
}

/// One Service as read from its object.
struct Reading {
    key: ServiceKey,
    version: ResourceVersion,
    wanted: Option<Wanted>,
    elsewhere: Option<Manager>,
    occupies: Option<ServicePorts>,
}

impl Known {
    /// Says whether what the Service asks for has changed.
    fn set(&mut self, reading: Reading) -> bool {
        self.observed = self.observed.max(reading.version);
        self.occupied.set(reading.key.clone(), reading.occupies);
        match reading.elsewhere {
            Some(manager) => self.elsewhere.insert(reading.key.clone(), manager),
            None => self.elsewhere.remove(&reading.key),
        };
        match reading.wanted {
            Some(wanted) => {
                let spec = wanted.spec.clone();
                let before = self.wanted.insert(reading.key, wanted);
                before.is_none_or(|before| before.spec != spec)
            }
            None => self.wanted.remove(&reading.key).is_some(),
        }
    }
}

impl ServiceIndex {
    /// An empty index that reads Services by `policy`.
    #[must_use]
    pub fn new(policy: ClassPolicy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// The Services of ours; `None` until the first list is complete.
    #[must_use]
    pub fn wanted(&self) -> Option<&BTreeMap<ServiceKey, Wanted>> {
        self.synced.then_some(&self.known.wanted)
    }

    /// The Services that other load balancers serve, though they have no class.
    #[must_use]
    pub fn elsewhere(&self) -> &BTreeMap<ServiceKey, Manager> {
        &self.known.elsewhere
    }

    /// The ports that kube-proxy serves on every node for any Service.
    #[must_use]
    pub fn occupied(&self) -> &Occupied {
        &self.known.occupied
    }

    /// Every Service event up to this version is in the index. What a list has
    /// brought counts at its end.
    #[must_use]
    pub fn observed(&self) -> ResourceVersion {
        self.known.observed
    }

    /// Grows whenever what some Service asks for has changed; a write to a
    /// Service's status or labels leaves it as it is.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes in one watch event.
    pub fn absorb(&mut self, event: Event<Service>) {
        match event {
            Event::Init => self.listing = Some(Known::default()),
            Event::InitApply(service) => {
                let reading = self.read(&service);
                self.listing.get_or_insert_default().set(reading);
            }
            Event::InitDone => {
                let mut listed = self.listing.take().unwrap_or_default();
                listed.observed = listed.observed.max(self.known.observed);
                if !self.synced || !same_specs(&listed.wanted, &self.known.wanted) {
                    self.revision += 1;
                }
                self.known = listed;
                self.synced = true;
            }
            Event::Apply(service) => {
                let reading = self.read(&service);
                self.revision += u64::from(self.known.set(reading));
            }
            Event::Delete(service) => {
                let gone = Reading {
                    key: ServiceKey::of(&service),
                    version: version_of(&service),
                    wanted: None,
                    elsewhere: None,
                    occupies: None,
                };
                self.revision += u64::from(self.known.set(gone));
            }
        }
    }

    fn read(&self, service: &Service) -> Reading {
        let key = ServiceKey::of(service);
        let mut elsewhere = None;
        let spec = match interpret(service, self.policy) {
            Interpretation::Serve(spec) => Some(spec),
            Interpretation::NotOurs | Interpretation::Pending => None,
            Interpretation::ManagedElsewhere(manager) => {
                elsewhere = Some(manager);
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
                self.known
                    .wanted
                    .get(&key)
                    .map(|wanted| wanted.spec.clone())
            }
        };
        let wanted = spec.map(|spec| Wanted {
            spec,
            holdings: Holdings::of(service),
        });
        Reading {
            key,
            version: version_of(service),
            wanted,
            elsewhere,
            occupies: ServicePorts::of(service),
        }
    }
}

fn version_of(service: &Service) -> ResourceVersion {
    ResourceVersion::of(&service.metadata).unwrap_or_default()
}

fn same_specs(a: &BTreeMap<ServiceKey, Wanted>, b: &BTreeMap<ServiceKey, Wanted>) -> bool {
    a.len() == b.len() && a.values().zip(b.values()).all(|(a, b)| a.spec == b.spec)
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

    fn synced(listed: Vec<Service>) -> ServiceIndex {
        let mut index = ServiceIndex::default();
        index.absorb(Event::Init);
        for service in listed {
            index.absorb(Event::InitApply(service));
        }
        assert!(
            index.wanted().is_none(),
            "an unfinished list is not to be acted on"
        );
        index.absorb(Event::InitDone);
        index
    }

    fn ports(index: &ServiceIndex) -> Vec<String> {
        let services = index.wanted().unwrap().values();
        services
            .flat_map(|wanted| wanted.spec.ports.keys().map(ToString::to_string))
            .collect()
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
        assert_eq!(index.elsewhere().len(), 1);
        index.absorb(Event::Apply(service(6, |_| {})));
        assert_eq!(ports(&index), ["80/TCP"]);
        assert!(index.elsewhere().is_empty());
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
