//! The one decision about a Service.

use std::{num::NonZeroU16, sync::Arc};

use highwire_api::{Interpretation, ServiceKey, ownership::IngressAuthor};

use super::{
    addresses::addresses,
    eligibility::{Asked, Nodes, Silence},
    port_conflicts::PortConflicts,
    serving::Serving,
};
use crate::{
    config::Policy,
    facts::{endpoints::Endpoints, ingress::Ingress},
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
}

/// Everything that a decision depends on but the Service itself.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// The nodes.
    pub nodes: &'a Nodes,
    /// Where Services have ready endpoints.
    pub endpoints: &'a Endpoints,
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
        let asked = Asked {
            key,
            spec,
            ports: Arc::new(spec.port_keys()),
            is_outdated: matches!(facts.asks, Interpretation::Invalid(_)),
            changed: service.changed,
            listed: &facts.status.listed.ingress,
            endpoints: cluster.endpoints,
        };
        serve(&asked, cluster, silence)
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
    }
}
