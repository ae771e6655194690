//! How many source ranges one node takes, over all Services.
//!
//! Whoever may create Services could otherwise fill the kernel's memory, and make every
//! replacement of the table last longer than nft is given.

use std::{cmp::Reverse, collections::BTreeSet, net::IpAddr};

use highwire_api::{ServiceKey, arbitration::Rank, clients::Clients};

use crate::facts::services::OurService;

/// The combinations of a port and a network that a node takes. That many take one to
/// two seconds to load (see [`highwire_api::clients::MOST_RANGES`]).
pub(super) const MOST_ON_NODE: usize = 10_000;

/// The Services for whose source ranges there is no room. As with ports, who is served
/// already comes first, then who is oldest; who comes later and has fewer ranges may
/// still find room.
#[must_use]
pub(super) fn without_room<'a>(
    candidates: impl Iterator<Item = &'a OurService>,
    own: &BTreeSet<IpAddr>,
) -> BTreeSet<ServiceKey> {
    let mut guarded: Vec<(&OurService, usize)> = candidates
        .filter_map(|ours| match &ours.spec.clients {
            Clients::Any => None,
            Clients::Within(networks) => {
                Some((ours, ours.spec.ports.len().saturating_mul(networks.len())))
            }
        })
        .collect();
    guarded.sort_by_key(|(OurService { spec, advertised }, _)| {
        let mut ports = spec.ports.keys();
        let serves = ports.any(|port| advertised.rank(*port, own) == Rank::Here);
        (Reverse(serves), spec.created, &spec.key)
    });
    let mut used = 0;
    let mut refused = BTreeSet::new();
    for (ours, ranges) in guarded {
        if used + ranges > MOST_ON_NODE {
            refused.insert(ours.spec.key.clone());
        } else {
            used += ranges;
        }
    }
    refused
}
