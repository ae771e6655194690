//! What the agent needs to know of its own Node object.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use highwire_api::{
    Family,
    names::{ENABLED_LABEL, ENABLED_VALUE},
};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};

/// The parts of a Node that decide what its agent does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The Node's UID, for owner references.
    pub uid: String,
    /// Whether the node has opted in and is not being deleted.
    pub enabled: bool,
    /// Its labels, matched by node selectors.
    pub labels: BTreeMap<String, String>,
    /// Its InternalIPs and ExternalIPs.
    pub addresses: BTreeSet<IpAddr>,
    /// Of each family the address at which kube-proxy serves NodePorts in every
    /// mode: the first InternalIP, else the first ExternalIP (kube-proxy
    /// `GetNodeHostIPs`).
    pub primary: BTreeMap<Family, IpAddr>,
}

impl NodeFacts {
    /// Reads a Node.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let addresses = node
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_deref());
        let of_type = |kind: &'static str| {
            let addresses = addresses.unwrap_or_default().iter();
            addresses
                .filter(move |address| address.type_ == kind)
                .filter_map(|address| address.address.parse::<IpAddr>().ok())
        };
        let mut primary = BTreeMap::new();
        for address in of_type("InternalIP").chain(of_type("ExternalIP")) {
            primary.entry(Family::of(address)).or_insert(address);
        }
        Self {
            uid: node.metadata.uid.clone().unwrap_or_default(),
            enabled: Self::opted_in(&node.metadata),
            addresses: of_type("InternalIP").chain(of_type("ExternalIP")).collect(),
            primary,
            labels,
        }
    }

    /// What is left of a Node that was deleted.
    #[must_use]
    pub fn deleted(self) -> Self {
        Self {
            enabled: false,
            ..self
        }
    }

    /// Whether the Node has opted in and is not being deleted.
    #[must_use]
    pub fn opted_in(metadata: &ObjectMeta) -> bool {
        let label = metadata
            .labels
            .as_ref()
            .and_then(|it| it.get(ENABLED_LABEL));
        metadata.deletion_timestamp.is_none() && label.is_some_and(|value| value == ENABLED_VALUE)
    }
}
