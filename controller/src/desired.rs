//! What a Service's status should say: a pure function of the Service and the nodes.
//!
//! A node that has observed the Service as it is now is listed with all of its
//! ports. One that has not, but is listed, stays listed with those of its listed
//! ports that are still wanted. So a change of ports neither makes addresses come
//! and go nor claims a port before a node serves it, and a controller that has just
//! started, and cannot know since when the Service is as it is, changes nothing.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    time::Duration,
};

use highwire_api::{Family, PortKey, ServiceKey, ServiceSpec, service::AddressType};

use crate::{
    absence::{Absence, Shortage},
    index::{
        node::{NodeAddress, NodeFacts, NodeRecord, Standing, Voice},
        service::{Asks, ServiceRecord},
    },
    ingress::Ingress,
    refusals::Refusals,
    rendezvous::choose,
};

/// How nodes are advertised, by flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advertising {
    /// How long a list is held that would become empty because agents are silent.
    pub(crate) empty_hold: Duration,
    /// How many nodes a Service lists that does not say; `None`: all.
    pub(crate) max_addresses: Option<NonZeroU16>,
}

/// That not all nodes are listed that could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limited {
    /// How many nodes are listed.
    pub(crate) advertised: usize,
    /// How many could be.
    pub(crate) ready: usize,
}

impl Default for Advertising {
    fn default() -> Self {
        Self {
            empty_hold: Duration::from_secs(30),
            max_addresses: NonZeroU16::new(64),
        }
    }
}

/// What to do about a Service's ingress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Leave what is there, whatever it is.
    Leave,
    /// It should say this.
    Publish {
        /// The addresses and ports; `None`: what stands there is not ours.
        ingress: Option<Ingress>,
        /// If not all nodes are listed that could be.
        limited: Option<Limited>,
        /// Why there are none, if that is not intended.
        shortage: Option<Shortage>,
        /// Which nodes refuse it, and why.
        refusals: Refusals,
    },
}

impl Decision {
    fn clear() -> Self {
        Self::without_conflicts(Some(Ingress::default()))
    }

    fn without_conflicts(ingress: Option<Ingress>) -> Self {
        Self::Publish {
            ingress,
            limited: None,
            shortage: None,
            refusals: Refusals::default(),
        }
    }
}

/// What to think of nodes whose agents are silent since a moment ago.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    IsAbsence,
    ProvesNothing,
}

/// How far a node may be listed for a Service.
enum Claim {
    /// With all ports.
    Full,
    /// With what it is listed for, as far as it is still wanted.
    AsListed,
}

/// Decides what the Service's ingress should say. `has_endpoint` is whether the Service
/// has a ready endpoint of that family on the node of that name.
pub(crate) fn decide<'a>(
    key: &ServiceKey,
    service: &ServiceRecord,
    nodes: impl Iterator<Item = (&'a String, &'a NodeRecord)> + Clone,
    has_endpoint: &dyn Fn(&str, Family) -> bool,
    advertising: &Advertising,
) -> Decision {
    let (spec, frozen) = match &service.asks {
        Asks::Serve(spec) => (spec, false),
        Asks::Frozen(spec, _) => (spec, true),
        Asks::Unreadable(_) | Asks::Pending => return Decision::Leave,
        Asks::Refused(_) | Asks::Abandoned => return Decision::clear(),
        Asks::Elsewhere {
            explained: true, ..
        } => return Decision::without_conflicts(None),
        Asks::Elsewhere { .. } => return Decision::Leave,
    };
    let view = View {
        key,
        service,
        spec,
        ports: spec.port_keys(),
        frozen,
        most: spec.max_addresses.or(advertising.max_addresses),
        has_endpoint,
    };
    let (mut ingress, mut limited) = view.ingress(nodes.clone(), Silence::IsAbsence);
    // Who watches the status, such as ExternalDNS, takes an empty list at its word.
    if ingress.is_empty() && !advertising.empty_hold.is_zero() {
        (ingress, limited) = view.ingress(nodes.clone(), Silence::ProvesNothing);
    }
    let refusals = view.refusals(nodes.clone());
    let shortage = ingress.is_empty().then(|| view.shortage(nodes));
    Decision::Publish {
        ingress: Some(ingress),
        limited,
        shortage,
        refusals,
    }
}

/// An address and the ports to list it with.
type Entry<'a> = (IpAddr, Cow<'a, BTreeSet<PortKey>>);

struct View<'a> {
    key: &'a ServiceKey,
    service: &'a ServiceRecord,
    spec: &'a ServiceSpec,
    ports: BTreeSet<PortKey>,
    frozen: bool,
    /// How many nodes may be listed.
    most: Option<NonZeroU16>,
    has_endpoint: &'a dyn Fn(&str, Family) -> bool,
}

impl View<'_> {
    /// The addresses to list, and how many nodes there would be if they are limited.
    fn ingress<'a>(
        &self,
        nodes: impl Iterator<Item = (&'a String, &'a NodeRecord)>,
        silence: Silence,
    ) -> (Ingress, Option<Limited>) {
        let claims: Vec<_> = nodes
            .filter_map(|(name, node)| {
                let claim = self.claim(name, node, silence).ok()?;
                Some((name, claim, node.facts.as_ref()?))
            })
            .collect();
        let addresses = |address_type, family| {
            let listed = claims.iter().map(move |(name, claim, facts)| {
                let listed = self.listed(name, claim, facts.addresses(address_type), family);
                (*name, listed)
            });
            let found = listed.filter(|(_, listed)| !listed.is_empty());
            found.collect::<Vec<(&String, Vec<Entry<'_>>)>>()
        };
        let mut by_node = BTreeMap::<&String, Vec<Entry<'_>>>::new();
        for family in self.spec.cluster_ips.families() {
            let chosen = match self.spec.address_type {
                AddressType::ExternalIp => addresses(NodeAddress::External, family),
                AddressType::InternalIp => addresses(NodeAddress::Internal, family),
                // A family's ExternalIPs if any serving node has one.
                AddressType::Auto => match addresses(NodeAddress::External, family) {
                    none if none.is_empty() => addresses(NodeAddress::Internal, family),
                    external => external,
                },
            };
            for (name, listed) in chosen {
                by_node.entry(name).or_default().extend(listed);
            }
        }
        let ready = by_node.len();
        let mut nodes: Vec<_> = by_node.into_iter().collect();
        if let Some(most) = self.most {
            let most = usize::from(most.get());
            choose(&self.spec.uid, most, &mut nodes, |(name, _)| name.as_str());
        }
        let advertised = nodes.len();
        let mut ingress = Ingress::default();
        for (address, ports) in nodes.into_iter().flat_map(|(_, listed)| listed) {
            ingress.add(address, &ports);
        }
        let limited = (advertised < ready).then_some(Limited { advertised, ready });
        (ingress, limited)
    }

    /// Which of a node's addresses of one family to list, with which ports.
    fn listed(
        &self,
        name: &str,
        claim: &Claim,
        addresses: &BTreeSet<IpAddr>,
        family: Family,
    ) -> Vec<Entry<'_>> {
        let answering = addresses
            .iter()
            .copied()
            .filter(|address| Family::of(*address) == family && self.answers_at(name, *address));
        let with_ports = answering.map(|address| match claim {
            Claim::Full => (address, Cow::Borrowed(&self.ports)),
            Claim::AsListed => (address, Cow::Owned(self.kept_ports(address))),
        });
        with_ports.filter(|(_, ports)| !ports.is_empty()).collect()
    }

    fn kept_ports(&self, address: IpAddr) -> BTreeSet<PortKey> {
        let listed = self.service.listed.ingress.ports(address);
        listed
            .map(|listed| listed & &self.ports)
            .unwrap_or_default()
    }

    /// Whether somebody would answer at this address of the node of that name.
    fn answers_at(&self, name: &str, address: IpAddr) -> bool {
        let family = Family::of(address);
        self.spec.cluster_ips.get(family).is_some() && self.is_behind(name, family)
    }

    /// Whether the Service has somebody to answer on that node in that family.
    fn is_behind(&self, name: &str, family: Family) -> bool {
        !self.service.needs_endpoints() || (self.has_endpoint)(name, family)
    }

    /// Whether and how far the node may be listed.
    fn claim(&self, name: &str, node: &NodeRecord, silence: Silence) -> Result<Claim, Absence> {
        let standing = node.standing();
        match standing {
            Standing::Out(absence) => return Err(absence),
            Standing::Lost(absence) if silence == Silence::IsAbsence => return Err(absence),
            Standing::Live | Standing::Kept | Standing::Lost(_) => {}
        }
        if !node.facts.as_ref().is_some_and(|facts| self.selects(facts)) {
            return Err(Absence::NotSelected);
        }
        if let Some(refusals) = node.refusals(self.key) {
            let first = refusals.first();
            return Err(Absence::Conflict(first.map_or_else(
                || "its agent refuses it".to_owned(),
                |refusal| refusal.cause.to_string(),
            )));
        }
        let mut families = self.spec.cluster_ips.families();
        if !families.any(|family| self.is_behind(name, family)) {
            return Err(Absence::NoEndpoint);
        }
        let observed = node.observed() >= Some(self.service.changed);
        Ok(if standing == Standing::Live && observed && !self.frozen {
            Claim::Full
        } else {
            Claim::AsListed
        })
    }

    fn selects(&self, facts: &NodeFacts) -> bool {
        self.spec.node_selector.matches(&facts.labels)
    }

    /// Who refuses it, whether it would be advertised there or not. A node that has
    /// not observed the Service as it is now may speak of what it was.
    fn refusals<'a>(&self, nodes: impl Iterator<Item = (&'a String, &'a NodeRecord)>) -> Refusals {
        let mut all = Refusals::default();
        for (name, node) in nodes {
            let Some(refusals) = node.refusals(self.key) else {
                continue;
            };
            if !node.facts.as_ref().is_some_and(|facts| self.selects(facts)) {
                continue;
            }
            let observed = node.observed() >= Some(self.service.changed);
            match node.voice() {
                Voice::Silent => {}
                Voice::Heard if observed => {
                    refusals.iter().for_each(|refusal| all.add(name, refusal));
                }
                Voice::Heard | Voice::Doubtful => {
                    refusals
                        .iter()
                        .for_each(|refusal| all.add_doubtful(refusal));
                }
            }
        }
        all
    }

    /// Why nobody is listed.
    fn shortage<'a>(
        &self,
        nodes: impl Iterator<Item = (&'a String, &'a NodeRecord)> + Clone,
    ) -> Shortage {
        let opted_in = nodes.filter_map(|(name, node)| {
            node.facts
                .as_ref()
                .filter(|facts| facts.opted_in)
                .map(|facts| (name, node, facts))
        });
        let selected = opted_in.clone().filter(|(_, _, facts)| self.selects(facts));
        let absent: Vec<(String, Absence)> = selected
            .map(|(name, node, facts)| (name.clone(), self.absence(name, node, facts)))
            .collect();
        match opted_in.count() {
            0 => Shortage::NoOptedIn,
            opted_in if absent.is_empty() => Shortage::SelectorMatchesNone {
                selector: self.spec.node_selector.clone(),
                opted_in,
            },
            _ => Shortage::NoneReady { absent },
        }
    }

    /// Why a node that is not listed is not.
    fn absence(&self, name: &str, node: &NodeRecord, facts: &NodeFacts) -> Absence {
        let of_type = |address: &&IpAddr| match self.spec.address_type {
            AddressType::Auto => true,
            AddressType::ExternalIp => facts.external.contains(*address),
            AddressType::InternalIp => facts.internal.contains(*address),
        };
        let all = facts.external.union(&facts.internal);
        match self.claim(name, node, Silence::IsAbsence) {
            Err(absence) => absence,
            Ok(_)
                if !all
                    .filter(of_type)
                    .any(|address| self.answers_at(name, *address)) =>
            {
                Absence::NoAddress
            }
            Ok(Claim::AsListed) if node.standing() == Standing::Kept => Absence::Silent,
            Ok(_) => Absence::NotObserved,
        }
    }
}
