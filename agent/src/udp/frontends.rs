//! Where this node takes UDP for Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use highwire_api::{Family, ServiceKey, arbitration::Slot};

/// A port of a Service, by the name that EndpointSlices use too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name; empty if it has none.
    pub port: String,
}

/// The node's addresses and ports that the kernel forwards UDP at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Each with the Service port behind it.
    pub served: BTreeMap<SocketAddr, ServicePortName>,
    /// All addresses of this node, served or not.
    pub own: BTreeSet<IpAddr>,
}

impl Frontends {
    /// Every one of `addresses` at each of `ports` of its family. Empty if there
    /// are no ports, whatever the node's `own` addresses.
    #[must_use]
    pub fn new(
        addresses: &BTreeSet<IpAddr>,
        ports: impl Iterator<Item = (Slot, ServicePortName)>,
        own: BTreeSet<IpAddr>,
    ) -> Self {
        let served: BTreeMap<_, _> = ports
            .flat_map(|(slot, name)| {
                addresses
                    .iter()
                    .filter(move |address| Family::of(**address) == slot.family)
                    .map(move |address| {
                        let frontend = SocketAddr::new(*address, slot.port.port.get());
                        (frontend, name.clone())
                    })
            })
            .collect();
        let own = if served.is_empty() {
            BTreeSet::new()
        } else {
            own
        };
        Self { served, own }
    }

    /// The Services behind them.
    #[must_use]
    pub fn services(&self) -> BTreeSet<&ServiceKey> {
        self.served.values().map(|name| &name.service).collect()
    }
}
