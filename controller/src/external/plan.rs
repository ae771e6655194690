//! What the LoadBalancer of each Service should ask of which box. Pure.
//!
//! The ports that a box has given out are in the LoadBalancers themselves, so every leader
//! plans from the same. What cannot be read, or names a box that there is none of, keeps what
//! it has.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

use highwire_api::{
    Family, Interpretation, PortKey, Protocol, ServiceKey, ServiceSpec,
    arbitration::{Claim, Rank, Slot, arbitrate},
    clients::Clients,
    external::{
        BoxPort, ExternalLoadBalancerSpec, LoadBalancerSpec, SessionAffinity, Trouble,
        load_balancer::BoxConflict,
        ports::{Move, Wish, allocate},
        spec::{PortChoice, PortRange},
    },
    names::EXTERNAL_LOAD_BALANCER_ANNOTATION,
};
use jiff::Timestamp;

use super::{snapshot::Snapshot, targets::targets};
use crate::facts::{load_balancer::service_uid, service::Balancer};

/// What should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What the LoadBalancer of each Service should be.
    pub wanted: BTreeMap<ServiceKey, Wanted>,
    /// The LoadBalancers that no Service has any more.
    pub gone: Vec<ServiceKey>,
    /// What is free on each box.
    pub usage: BTreeMap<String, Usage>,
}

/// What the LoadBalancer of a Service should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The UID of the Service.
    pub service_uid: String,
    /// What it asks of the box.
    pub spec: LoadBalancerSpec,
    /// Why the Service does not get what it asks for.
    pub refused: Option<Refused>,
    /// Ports that have another number on the box than before.
    pub moved: Vec<Move>,
}

/// Why a Service does not get what it asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// The reason.
    pub trouble: Trouble,
    /// The same in words, with what to do.
    pub message: String,
    /// The ports that others have.
    pub conflicts: Vec<BoxConflict>,
}

/// How many ports of a box are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By Services.
    pub used: u32,
    /// Free ones, of a range.
    pub free: Option<u32>,
}

/// A Service that wants ports of a box, or keeps those it has.
struct Asking<'a> {
    key: &'a ServiceKey,
    uid: &'a str,
    created: Timestamp,
    /// What it asks for; `None` keeps what it has.
    spec: Option<&'a ServiceSpec>,
    affinity: SessionAffinity,
    /// What its LoadBalancer has of this box.
    has: Option<&'a LoadBalancerSpec>,
    /// What is wrong though it keeps what it has.
    refused: Option<Refused>,
}

/// Plans.
#[must_use]
pub fn plan(snapshot: &Snapshot, ignore_exclude_label: bool) -> Plan {
    let mut plan = Plan::default();
    let mut asking: BTreeMap<&str, Vec<Asking<'_>>> = BTreeMap::new();
    for (key, service) in &snapshot.services {
        let existing = snapshot.load_balancers.get(key);
        let existing = existing.filter(|it| service_uid(it) == Some(&service.uid));
        let has = existing.map(|it| &it.spec);
        let Balancer::External { wanted, affinity } = &service.balancer else {
            continue;
        };
        let (spec, chosen, refused) = match &service.asks {
            Interpretation::Serve(spec) => {
                let (chosen, refused) = choose(wanted.as_deref(), snapshot, has);
                (Some(spec), chosen, refused)
            }
            Interpretation::Invalid(_) | Interpretation::Pending => (None, None, None),
            Interpretation::NotOurs
            | Interpretation::ManagedElsewhere(_)
            | Interpretation::Unsupported(_) => continue,
        };
        let keeps = chosen.is_none().then_some(has).flatten();
        let keeps = keeps.map(|it| it.external_load_balancer.as_str());
        let name = chosen.or(keeps);
        let name = name.and_then(|name| snapshot.externals.get_key_value(name));
        match name {
            Some((name, _)) => asking.entry(name).or_default().push(Asking {
                key,
                uid: &service.uid,
                created: spec.map_or(Timestamp::MIN, |spec| spec.created),
                spec: spec.filter(|_| chosen.is_some()),
                affinity: *affinity,
                has: has.filter(|it| it.external_load_balancer == *name),
                refused,
            }),
            None if refused.is_some() || has.is_some() => {
                let wanted = Wanted {
                    service_uid: service.uid.clone(),
                    spec: has.cloned().unwrap_or_default(),
                    refused,
                    moved: Vec::new(),
                };
                plan.wanted.insert(key.clone(), wanted);
            }
            None => {}
        }
    }
    for (name, external) in &snapshot.externals {
        let asking = asking.remove(name.as_str()).unwrap_or_default();
        let given = give(name, &external.spec, asking, snapshot, ignore_exclude_label);
        let used = given.iter().map(|(_, wanted)| wanted.spec.ports.len());
        let used = u32::try_from(used.sum::<usize>()).unwrap_or(u32::MAX);
        let free = external.spec.ports.range.map(|range| free(range, &given));
        plan.usage.insert(name.clone(), Usage { used, free });
        plan.wanted.extend(given);
    }
    let all = snapshot.load_balancers.keys();
    plan.gone = all
        .filter(|key| !plan.wanted.contains_key(key))
        .cloned()
        .collect();
    plan
}

/// Which ExternalLoadBalancer a Service gets, and what is wrong with its choice.
fn choose<'a>(
    wanted: Option<&'a str>,
    snapshot: &'a Snapshot,
    has: Option<&'a LoadBalancerSpec>,
) -> (Option<&'a str>, Option<Refused>) {
    let refused = |trouble, message| {
        let conflicts = Vec::new();
        Some(Refused {
            trouble,
            message,
            conflicts,
        })
    };
    if let Some(name) = wanted {
        if snapshot.externals.contains_key(name) {
            return (Some(name), None);
        }
        let message = format!(
            "metadata.annotations[{EXTERNAL_LOAD_BALANCER_ANNOTATION}]: {name:?}: there is no \
             ExternalLoadBalancer of this name; create it, or write another name"
        );
        return (None, refused(Trouble::NoExternalLoadBalancer, message));
    }
    let defaults = snapshot.externals.iter().filter(|(_, it)| it.spec.default);
    let defaults: Vec<&str> = defaults.map(|(name, _)| name.as_str()).collect();
    match *defaults {
        [only] => (Some(only), None),
        [] => {
            let message = format!(
                "no ExternalLoadBalancer has spec.default: true; set it in one, or name one in \
                 the annotation {EXTERNAL_LOAD_BALANCER_ANNOTATION}"
            );
            (None, refused(Trouble::NoExternalLoadBalancer, message))
        }
        [first, second, ..] => {
            let message = format!(
                "the ExternalLoadBalancers {first} and {second} both have spec.default: true; \
                 leave it in one of them, or name one in the annotation \
                 {EXTERNAL_LOAD_BALANCER_ANNOTATION}"
            );
            let has = has.map(|it| it.external_load_balancer.as_str());
            let has = has.filter(|name| defaults.contains(name));
            (has, refused(Trouble::SeveralDefaults, message))
        }
    }
}

/// Gives out the ports of one box.
fn give(
    name: &str,
    external: &ExternalLoadBalancerSpec,
    asking: Vec<Asking<'_>>,
    snapshot: &Snapshot,
    ignore_exclude_label: bool,
) -> Vec<(ServiceKey, Wanted)> {
    let (unable, able): (Vec<_>, Vec<_>) = asking
        .into_iter()
        .map(|asking| {
            let spec = asking.spec.filter(|_| external.http_updater.is_some());
            (spec.and_then(unable), asking)
        })
        .partition(|(unable, _)| unable.is_some());
    let able: Vec<_> = able.into_iter().map(|(_, asking)| asking).collect();
    let ports = match (external.ports.choice, external.ports.range) {
        (PortChoice::Range, Some(range)) => of_range(name, range, &able),
        (PortChoice::Range, None) | (PortChoice::ServicePort, _) => own_ports(&able),
    };
    let given = able.into_iter().zip(ports).map(|(asking, given)| {
        let targets = asking.spec.map(|spec| {
            let choice = external.target_address_type;
            let ports = asking.has.iter().flat_map(|has| &has.ports);
            let known = ports
                .flat_map(|port| &port.targets)
                .map(|it| it.address)
                .collect();
            targets(spec, snapshot, choice, ignore_exclude_label, &known)
        });
        let had = |port| asking.has.and_then(|has| box_port(has, port));
        let ports = given.ports.into_iter().map(|(port, box_port)| BoxPort {
            port: port.port.get(),
            protocol: port.protocol,
            box_port: box_port.get(),
            targets: match &targets {
                Some(targets) => targets.get(&port).cloned().unwrap_or_default(),
                None => had(port).map(|it| it.targets.clone()).unwrap_or_default(),
            },
        });
        let clients = asking.spec.map(|spec| &spec.clients);
        let spec = LoadBalancerSpec {
            external_load_balancer: name.to_owned(),
            ports: ports.collect(),
            source_ranges: match (clients, asking.has) {
                (Some(Clients::Any), _) | (None, None) => Vec::new(),
                (Some(Clients::Within(networks)), _) => networks.clone(),
                (None, Some(has)) => has.source_ranges.clone(),
            },
            session_affinity: asking.affinity,
        };
        let wanted = Wanted {
            service_uid: asking.uid.to_owned(),
            spec,
            refused: given.refused.or(asking.refused),
            moved: given.moved,
        };
        (asking.key.clone(), wanted)
    });
    let unable = unable.into_iter().map(|(refused, asking)| {
        let spec = LoadBalancerSpec {
            external_load_balancer: name.to_owned(),
            ..LoadBalancerSpec::default()
        };
        let wanted = Wanted {
            service_uid: asking.uid.to_owned(),
            spec,
            refused,
            moved: Vec::new(),
        };
        (asking.key.clone(), wanted)
    });
    given.chain(unable).collect()
}

/// What a box that is driven by an updater cannot do. Source ranges would be open to all.
fn unable(spec: &ServiceSpec) -> Option<Refused> {
    let message = if spec
        .ports
        .keys()
        .any(|port| port.protocol == Protocol::Sctp)
    {
        "spec.ports: SCTP: updaters know TCP and UDP only; use nodes of class highwire.dev/node \
         for it"
    } else if spec.clients != Clients::Any {
        "spec.loadBalancerSourceRanges: updaters have no word for them, so all clients would be \
         let in; remove the field and restrict clients on the box"
    } else {
        return None;
    };
    Some(Refused {
        trouble: Trouble::Unsupported,
        message: message.to_owned(),
        conflicts: Vec::new(),
    })
}

/// The ports that one Service gets.
#[derive(Default)]
struct Given {
    ports: BTreeMap<PortKey, NonZeroU16>,
    refused: Option<Refused>,
    moved: Vec<Move>,
}

fn box_port(has: &LoadBalancerSpec, port: PortKey) -> Option<&BoxPort> {
    let mut ports = has.ports.iter();
    ports.find(|it| it.port == port.port.get() && it.protocol == port.protocol)
}

impl Asking<'_> {
    /// Its ports, each with the port of the box that it has.
    fn ports(&self) -> BTreeMap<PortKey, Option<NonZeroU16>> {
        let number = |port: &BoxPort| NonZeroU16::new(port.box_port);
        let had = |port| self.has.and_then(|has| number(box_port(has, port)?));
        match self.spec {
            Some(spec) => spec.ports.keys().map(|port| (*port, had(*port))).collect(),
            None => {
                let ports = self.has.iter().flat_map(|has| &has.ports);
                ports
                    .filter_map(|it| {
                        let port = PortKey::new(it.protocol, it.port.into())?;
                        Some((port, number(it)))
                    })
                    .collect()
            }
        }
    }

    /// The ports that it wants to have: those of the Service, or those it keeps.
    fn own(&self) -> BTreeMap<PortKey, NonZeroU16> {
        let ports = self.ports().into_iter();
        let own = |port: PortKey, has: Option<NonZeroU16>| match self.spec {
            Some(_) => port.port,
            None => has.unwrap_or(port.port),
        };
        ports.map(|(port, has)| (port, own(port, has))).collect()
    }
}

/// A box takes both families at a port, so they are one slot there.
fn slot(protocol: Protocol, port: NonZeroU16) -> Slot {
    Slot {
        family: Family::V4,
        port: PortKey { protocol, port },
    }
}

/// Each Service gets its own ports, as on a node.
fn own_ports(asking: &[Asking<'_>]) -> Vec<Given> {
    let claims = asking.iter().map(|asking| {
        let has = asking.ports();
        let slots = asking.own().into_iter().map(|(port, own)| {
            let is_held = has[&port] == Some(own);
            let rank = if is_held { Rank::Here } else { Rank::Newcomer };
            (slot(port.protocol, own), rank)
        });
        Claim {
            service: asking.key.clone(),
            created: asking.created,
            slots: slots.collect(),
            taken: BTreeMap::new(),
        }
    });
    let claims: Vec<Claim> = claims.filter(|claim| !claim.slots.is_empty()).collect();
    let verdict = arbitrate(&claims);
    let given = asking.iter().map(|asking| {
        let Some(refusals) = verdict.refused.get(asking.key) else {
            return Given {
                ports: asking.own(),
                ..Given::default()
            };
        };
        let conflicts = refusals.iter().map(|refusal| BoxConflict {
            protocol: refusal.slot.port.protocol,
            port: refusal.slot.port.port.get(),
            held_by: refusal.holder.to_string(),
        });
        let conflicts: Vec<_> = conflicts.collect();
        let sentence = |it: &BoxConflict| {
            format!(
                "{}/{} is held by {}",
                it.port,
                it.protocol.as_str(),
                it.held_by
            )
        };
        let sentences: Vec<String> = conflicts.iter().map(sentence).collect();
        Given {
            refused: Some(Refused {
                trouble: Trouble::PortConflict,
                message: sentences.join("; "),
                conflicts,
            }),
            ..Given::default()
        }
    });
    given.collect()
}

/// Each Service gets free ports of the range, and keeps those it has.
fn of_range(name: &str, range: PortRange, asking: &[Asking<'_>]) -> Vec<Given> {
    let wishes = asking.iter().map(|asking| Wish {
        service: asking.key.clone(),
        created: asking.created,
        ports: asking.ports(),
    });
    let wishes: Vec<Wish> = wishes.collect();
    let mut allocation = allocate(&wishes, range);
    let given = asking.iter().zip(wishes).map(|(asking, wish)| {
        let moved = allocation
            .moved
            .iter()
            .filter(|it| it.service == *asking.key);
        if let Some(ports) = allocation.given.remove(asking.key) {
            return Given {
                moved: moved.cloned().collect(),
                refused: None,
                ports,
            };
        }
        let kept = wish.ports.into_iter().filter_map(|(port, has)| {
            let is_within = |has: &NonZeroU16| (range.low..=range.high).contains(has);
            Some((port, has.filter(is_within)?))
        });
        Given {
            ports: kept.collect(),
            moved: Vec::new(),
            refused: Some(Refused {
                trouble: Trouble::RangeExhausted,
                message: format!(
                    "the range {} to {} of ExternalLoadBalancer {name} has no free port left; \
                     widen spec.ports.range there",
                    range.low, range.high
                ),
                conflicts: Vec::new(),
            }),
        }
    });
    given.collect()
}

/// How many ports of the range are free, of the protocol that has fewer.
fn free(range: PortRange, given: &[(ServiceKey, Wanted)]) -> u32 {
    // The API server admits no range that is upside down; here it is an empty one.
    let size = (range.low.get()..=range.high.get()).len();
    let used = |protocol| {
        let ports = given.iter().flat_map(|(_, wanted)| &wanted.spec.ports);
        let ports = ports.filter(|it| it.protocol == protocol);
        let ports: BTreeSet<u16> = ports.map(|it| it.box_port).collect();
        ports.len()
    };
    let used = used(Protocol::Tcp).max(used(Protocol::Udp));
    u32::try_from(size.saturating_sub(used)).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
