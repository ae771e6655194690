//! LoadBalancer → fact: what a box outside the cluster does for a Service. Its texts are
//! escaped: they get into conditions, Events and the status page.

use std::collections::BTreeMap;

use super::ingress::Host;
use highwire_api::{
    PortKey,
    external::{ACCEPTED, LoadBalancer, READY, Trouble},
};
use highwire_runtime::printable::printable;

/// What a Service got, or why it got nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// The UID of the Service that it was made for.
    pub service_uid: String,
    /// The ExternalLoadBalancer.
    pub external: String,
    /// Where clients reach the Service now.
    pub hosts: Vec<Host>,
    /// The Service's ports that have another number on the box, and that number.
    pub moved: BTreeMap<PortKey, u16>,
    /// The ports that other Services have, and who.
    pub conflicts: BTreeMap<PortKey, String>,
    /// Why it does not get what it asks for.
    pub refused: Option<(Trouble, String)>,
    /// Why the box does not have it yet.
    pub awaited: Option<(Trouble, String)>,
}

impl Granted {
    /// Reads a LoadBalancer.
    #[must_use]
    pub fn of(object: &LoadBalancer) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let trouble = |type_: &str| {
            let stated = status.conditions.iter().find(|it| it.type_ == type_)?;
            let trouble = Trouble::of(&stated.reason)?;
            (stated.status != "True").then(|| (trouble, printable(&stated.message)))
        };
        let moved = object.spec.ports.iter().filter(|it| it.port != it.box_port);
        // No host has another name.
        let is_host = |it: &&String| it.chars().all(|c| c.is_ascii_graphic());
        let addresses = status.addresses.iter().filter(is_host);
        Self {
            service_uid: service_uid(object).unwrap_or_default().to_owned(),
            external: printable(&object.spec.external_load_balancer),
            hosts: addresses.map(|it| Host::of(it)).collect(),
            moved: moved
                .filter_map(|it| Some((PortKey::new(it.protocol, it.port.into())?, it.box_port)))
                .collect(),
            conflicts: status
                .conflicts
                .iter()
                .filter_map(|it| {
                    let port = PortKey::new(it.protocol, it.port.into())?;
                    Some((port, printable(&it.held_by)))
                })
                .collect(),
            refused: trouble(ACCEPTED),
            awaited: trouble(READY),
        }
    }
}

/// The UID of the Service that a LoadBalancer was made for.
#[must_use]
pub fn service_uid(object: &LoadBalancer) -> Option<&str> {
    let mut owners = object.metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.kind == "Service")?;
    Some(&owner.uid)
}
