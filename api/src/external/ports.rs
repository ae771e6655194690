//! Which ports of a box its Services get.
//!
//! With `ServicePort` they are slots of one more node, and [`arbitrate`] decides. With `Range`
//! nobody has a wish, so nobody is in conflict: a port that a Service has stays its own, and
//! each further one is the lowest that is free, oldest Service first. What has no room any
//! more, because the range is full or has shrunk, is said.
//!
//! [`arbitrate`]: crate::arbitration::arbitrate

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

use jiff::Timestamp;

use crate::{key::ServiceKey, port::PortKey};

use super::spec::PortRange;

/// A Service that wants ports of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Who.
    pub service: ServiceKey,
    /// When it was created.
    pub created: Timestamp,
    /// Its ports, each with the port of the box that it has, if any.
    pub ports: BTreeMap<PortKey, Option<NonZeroU16>>,
}

/// What was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// The ports of the box by Service and its ports: all of a Service's, or it is not here.
    pub given: BTreeMap<ServiceKey, BTreeMap<PortKey, NonZeroU16>>,
    /// The Services for which the range has no room.
    pub without: BTreeSet<ServiceKey>,
    /// The ports of the box that moved because they are outside the range, or another
    /// Service's: from, to.
    pub moved: Vec<Move>,
}

/// A port of a Service is another on the box than before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Whose.
    pub service: ServiceKey,
    /// The Service's port.
    pub port: PortKey,
    /// The box's port before.
    pub from: NonZeroU16,
    /// The box's port now.
    pub to: NonZeroU16,
}

/// Gives out the ports of a range. TCP and UDP have ports of their own. The order of the
/// wishes does not matter.
#[must_use]
pub fn allocate(wishes: &[Wish], range: PortRange) -> Allocation {
    let mut wishes: Vec<&Wish> = wishes.iter().collect();
    wishes.sort_by_key(|wish| (wish.created, &wish.service));
    let is_within = |port: NonZeroU16| (range.low..=range.high).contains(&port);
    // Whoever has a port keeps it, before anybody gets a new one.
    let mut taken = BTreeSet::new();
    let mut kept = BTreeMap::new();
    for wish in &wishes {
        for (port, has) in &wish.ports {
            if let Some(has) = has.filter(|has| is_within(*has))
                && taken.insert((port.protocol, has))
            {
                kept.insert((&wish.service, *port), has);
            }
        }
    }
    let mut allocation = Allocation::default();
    for wish in wishes {
        let mut given = BTreeMap::new();
        let mut new = Vec::new();
        for port in wish.ports.keys() {
            let all = range.low.get()..=range.high.get();
            let free = || {
                let mut all = all.filter_map(NonZeroU16::new);
                all.find(|it| !taken.contains(&(port.protocol, *it)))
            };
            let Some(to) = kept.get(&(&wish.service, *port)).copied().or_else(free) else {
                break;
            };
            if taken.insert((port.protocol, to)) {
                new.push((port.protocol, to));
            }
            given.insert(*port, to);
        }
        if given.len() < wish.ports.len() {
            // All or nothing; what it had stays free of others until the next decision.
            new.iter().for_each(|port| {
                taken.remove(port);
            });
            allocation.without.insert(wish.service.clone());
            continue;
        }
        for (port, to) in &given {
            if let Some(from) = wish.ports[port].filter(|from| from != to) {
                allocation.moved.push(Move {
                    service: wish.service.clone(),
                    port: *port,
                    from,
                    to: *to,
                });
            }
        }
        allocation.given.insert(wish.service.clone(), given);
    }
    allocation
}

#[cfg(test)]
#[path = "ports_tests.rs"]
mod tests;
