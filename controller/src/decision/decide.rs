//! The one decision about a Service.

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc};

use highwire_api::{
    Interpretation, PortKey, ServiceKey, ServiceSpec,
    external::{LoadBalancer, Trouble},
    node::ConflictReason,
    ownership::IngressAuthor,
};

use super::{
    addresses::addresses,
    eligibility::{Asked, Nodes, Silence},
    port_conflicts::{Affected, PortConflicts},
    serving::Serving,
};
use crate::{
    config::Policy,
    facts::{
        Facts, ingress::Ingress, load_balancer::Granted, node::PortConflict, service::ServiceFacts,
    },
    history::History,
};

/// What the status of a Service should say. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The addresses and ports.
    pub ingress: Option<Ingress>,
    /// Whether the addresses would all go if silent agents were dead.
    pub is_held: bool,
    /// Who refuses it a port.
    pub conflicts: Option<PortConflicts>,
    /// Whether it has addresses, or why not.
    pub serving: Option<Serving>,
    /// The ports that have another number there, and that number.
    pub moved: BTreeMap<PortKey, u16>,
}

/// Everything that a decision depends on but the Service itself.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// The nodes.
    pub nodes: &'a Nodes,
    /// What the watches said.
    pub facts: &'a Facts,
    /// What the flags say.
    pub policy: &'a Policy,
}

/// Decides what the status should say. Programs that watch it, such as ExternalDNS,
/// act on an empty list at once; so with [`Silence::ProvesNothing`] a list that would become
/// empty keeps the nodes that are only silent.
#[must_use]
pub fn decide(
    key: &ServiceKey,
    service: &History,
    cluster: &Cluster<'_>,
    silence: Silence,
) -> Decision {
    let cleared = |serving| Decision {
        ingress: Some(Ingress::default()),
        conflicts: Some(PortConflicts::default()),
        serving: Some(serving),
        ..Decision::default()
    };
    let facts = &service.facts;
    let served = service.spec().map(|spec| {
        if facts.is_external() {
            let load_balancer = cluster.facts.load_balancer(key);
            return serve_external(facts, spec, load_balancer.map(AsRef::as_ref));
        }
        serve(&asked(key, service, spec, cluster), cluster, silence)
    });
    let served = served.unwrap_or_default();
    let has_addresses = !facts.status.listed.is_empty();
    match &facts.asks {
        Interpretation::Serve(_) => served,
        Interpretation::Invalid(problems) => Decision {
            serving: Some(Serving::Invalid {
                problems: problems.clone(),
                has_addresses: served
                    .ingress
                    .as_ref()
                    .map_or(has_addresses, |ingress| !ingress.is_empty()),
            }),
            ..served
        },
        Interpretation::Unsupported(problems) => cleared(Serving::Unsupported(problems.clone())),
        // An ingress of another controller means that it has taken the Service over.
        Interpretation::NotOurs if !matches!(facts.author, IngressAuthor::Other(_)) => {
            cleared(Serving::NotOurs)
        }
        Interpretation::NotOurs | Interpretation::ManagedElsewhere(_)
            if facts.has_our_conditions =>
        {
            Decision {
                ingress: None,
                ..cleared(Serving::NotOurs)
            }
        }
        Interpretation::NotOurs | Interpretation::ManagedElsewhere(_) => Decision::default(),
        Interpretation::Pending => Decision {
            serving: has_addresses.then_some(Serving::Addresses),
            ..Decision::default()
        },
    }
}

/// The Service as the decision about nodes sees it; `spec` is what it is to be served for.
#[must_use]
pub fn asked<'a>(
    key: &'a ServiceKey,
    service: &'a History,
    spec: &'a ServiceSpec,
    cluster: &Cluster<'a>,
) -> Asked<'a> {
    Asked {
        key,
        spec,
        ports: Arc::new(spec.port_keys()),
        is_outdated: matches!(service.facts.asks, Interpretation::Invalid(_)),
        changed: service.changed,
        listed: &service.facts.status.listed.ingress,
        endpoints: cluster.facts.endpoints(),
    }
}

fn serve(asked: &Asked<'_>, cluster: &Cluster<'_>, silence: Silence) -> Decision {
    let most = NonZeroU16::new(cluster.policy.max_addresses);
    let most = asked.spec.max_addresses.or(most);
    let list = |silence| addresses(asked, cluster.nodes, silence, most);
    let (mut ingress, mut limited) = list(Silence::IsAbsence);
    let would_be_empty = ingress.is_empty();
    if would_be_empty && silence == Silence::ProvesNothing {
        (ingress, limited) = list(silence);
    }
    Decision {
        is_held: would_be_empty && !ingress.is_empty(),
        conflicts: Some(PortConflicts::of(asked, cluster.nodes)),
        serving: Some(match limited {
            _ if ingress.is_empty() => Serving::without_address(asked, cluster.nodes),
            Some(limited) => Serving::Limited(limited),
            None => Serving::Addresses,
        }),
        ingress: Some(ingress),
        moved: BTreeMap::new(),
    }
}

/// What a box outside the cluster does is in the LoadBalancer of the Service.
fn serve_external(
    service: &ServiceFacts,
    spec: &ServiceSpec,
    load_balancer: Option<&LoadBalancer>,
) -> Decision {
    let granted = load_balancer.map(Granted::of);
    let Some(granted) = granted.filter(|it| it.service_uid == service.uid) else {
        // There will be one; what is listed stays until then.
        let message = "the leading controller has made no LoadBalancer for it yet".to_owned();
        let waits = service
            .status
            .listed
            .is_empty()
            .then_some(Serving::External {
                trouble: Trouble::Waiting,
                message,
                has_addresses: false,
            });
        return Decision {
            serving: waits,
            ..Decision::default()
        };
    };
    let (mut ingress, ports) = (Ingress::default(), Arc::new(spec.port_keys()));
    for host in granted.hosts {
        ingress.add(host, &ports);
    }
    let (has_addresses, has_conflicts) = (!ingress.is_empty(), !granted.conflicts.is_empty());
    let conflicts = granted.conflicts.into_iter().map(|(port, held_by)| {
        let conflict = PortConflict {
            port,
            held_by,
            reason: ConflictReason::HeldByService,
        };
        let affected = Affected {
            named: vec![format!("ExternalLoadBalancer {}", granted.external)],
            nodes: 1,
        };
        (conflict, affected)
    });
    // What the box has it keeps while its updater fails.
    let awaited = granted.awaited.filter(|_| !has_addresses);
    Decision {
        is_held: false,
        conflicts: Some(PortConflicts {
            certain: conflicts.collect(),
            is_uncertain: false,
        }),
        serving: match granted.refused.or(awaited) {
            // The condition about ports says the rest.
            Some((Trouble::PortConflict, _)) if has_conflicts && !has_addresses => {
                Some(Serving::PortsRefused)
            }
            Some((trouble, message)) => Some(Serving::External {
                trouble,
                message,
                has_addresses,
            }),
            None => has_addresses.then_some(Serving::Addresses),
        },
        ingress: Some(ingress),
        moved: granted.moved,
    }
}
