//! The node's own addresses, read and followed by rtnetlink.
//!
//! By default a Service answers at the addresses that the Node object names and
//! at global addresses of interfaces that carry a default route; never at
//! loopback, link-local, CNI bridge or `kube-ipvs0` addresses. That is why the
//! rules hold an explicit set: `fib daddr type local` would also catch
//! node-local DNS and bound ClusterIPs (design §2.3).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::LinkAttribute,
        route::{RouteAttribute, RouteMessage, RouteType},
    },
    sys::SocketAddr,
};
use thiserror::Error;
use tokio::{sync::mpsc, time::timeout};

/// One address of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// The interface that has it.
    pub interface: String,
    /// Whether it has global scope (not host or link).
    pub global: bool,
    /// Whether its interface carries a default route.
    pub on_default_route: bool,
}

/// Which of the host's addresses Services answer at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressPolicy {
    /// The Node's addresses and those on interfaces with a default route.
    Default,
    /// Only addresses within these networks (`--address-cidr`). Never empty.
    Within(Vec<IpNet>),
}

/// Interfaces whose addresses are never served: bound by kube-proxy in ipvs
/// mode, and by node-local DNS.
const NEVER_SERVED: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

/// Picks the addresses at which Services answer.
#[must_use]
pub fn served_addresses(
    host: &[HostAddress],
    node: &BTreeSet<IpAddr>,
    policy: &AddressPolicy,
) -> BTreeSet<IpAddr> {
    let serves = |candidate: &&HostAddress| {
        let address = candidate.address;
        let possible = candidate.global
            && !address.is_loopback()
            && !NEVER_SERVED.contains(&candidate.interface.as_str());
        possible
            && match policy {
                AddressPolicy::Default => node.contains(&address) || candidate.on_default_route,
                AddressPolicy::Within(networks) => {
                    networks.iter().any(|network| network.contains(&address))
                }
            }
    };
    host.iter()
        .filter(serves)
        .map(|candidate| candidate.address)
        .collect()
}

/// Why the host's addresses cannot be read.
#[derive(Debug, Error)]
pub enum AddressError {
    /// The netlink socket cannot be opened.
    #[error("cannot open an rtnetlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// The kernel did not answer a request.
    #[error("rtnetlink refused to list {what}: {source}")]
    List {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// Notifications ended: the socket is gone.
    #[error("the rtnetlink socket was closed")]
    Closed,
}

/// After a notification, more of them are awaited this long before the
/// addresses are read again: a change of one interface sends several.
const SETTLE: Duration = Duration::from_millis(20);

type Notifications = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Sends the host's addresses now and after every change of them, until the
/// receiver is dropped.
///
/// # Errors
/// If the kernel's netlink cannot be used; it never ends for another reason.
pub async fn follow(sender: mpsc::Sender<Vec<HostAddress>>) -> Result<(), AddressError> {
    let (connection, handle, mut notifications) = new_multicast_connection(&[
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])
    .map_err(AddressError::Open)?;
    let _connection = AbortOnDrop(tokio::spawn(connection));
    let mut known = None;
    loop {
        let addresses = read(&handle).await?;
        if known.as_ref() != Some(&addresses) {
            if sender.send(addresses.clone()).await.is_err() {
                return Ok(());
            }
            known = Some(addresses);
        }
        wait_for_change(&mut notifications).await?;
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn wait_for_change(notifications: &mut Notifications) -> Result<(), AddressError> {
    loop {
        let (message, _) = notifications.next().await.ok_or(AddressError::Closed)?;
        if matters(&message) {
            break;
        }
    }
    while let Ok(Some(_)) = timeout(SETTLE, notifications.next()).await {}
    Ok(())
}

/// Pod routes come and go all day; only addresses and default routes matter here.
fn matters(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => is_default(route),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_),
        )
        | NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

async fn read(handle: &Handle) -> Result<Vec<HostAddress>, AddressError> {
    let list = |what| move |source| AddressError::List { what, source };
    let links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(list("links"))?;
    let names: BTreeMap<u32, String> = links
        .into_iter()
        .filter_map(|link| {
            let name = link
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                })?;
            Some((link.header.index, name))
        })
        .collect();
    let v4 = handle
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build());
    let v6 = handle
        .route()
        .get(RouteMessageBuilder::<Ipv6Addr>::new().build());
    let mut default_links = BTreeSet::new();
    for request in [v4, v6] {
        let routes: Vec<RouteMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(list("routes"))?;
        default_links.extend(
            routes
                .iter()
                .filter(|route| is_default(route))
                .flat_map(outputs),
        );
    }
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(list("addresses"))?;
    let mut addresses: Vec<HostAddress> = messages
        .iter()
        .filter_map(|message| {
            Some(HostAddress {
                address: local_address(message)?,
                interface: names
                    .get(&message.header.index)
                    .cloned()
                    .unwrap_or_default(),
                global: message.header.scope == AddressScope::Universe,
                on_default_route: default_links.contains(&message.header.index),
            })
        })
        .collect();
    addresses.sort();
    Ok(addresses)
}

/// The links a route leaves by: one, or one per next hop of a multipath route.
fn outputs(route: &RouteMessage) -> Vec<u32> {
    route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        })
        .collect()
}

/// The address itself; on point-to-point links IFA_ADDRESS is the peer's
/// (kernel include/uapi/linux/if_addr.h). An IPv6 address that is still being
/// checked for duplicates, or was found to be one, does not answer.
fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let not_ours = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    if message.header.flags.intersects(not_ours) {
        return None;
    }
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, interface: &str, global: bool, on_default_route: bool) -> HostAddress {
        HostAddress {
            address: address.parse().unwrap(),
            interface: interface.into(),
            global,
            on_default_route,
        }
    }

    fn served(host: &[HostAddress], node: &[&str], policy: &AddressPolicy) -> Vec<String> {
        let node = node.iter().map(|ip| ip.parse().unwrap()).collect();
        served_addresses(host, &node, policy)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn usual_host() -> Vec<HostAddress> {
        vec![
            host("127.0.0.1", "lo", false, false),
            host("192.0.2.11", "eth0", true, true),
            host("fe80::1", "eth0", false, true),
            host("203.0.113.5", "eth1", true, false),
            host("10.244.0.1", "cni0", true, false),
            host("10.96.0.10", "kube-ipvs0", true, false),
            host("169.254.20.10", "nodelocaldns", true, false),
        ]
    }

    #[test]
    fn the_nodes_own_and_default_route_addresses_are_served() {
        let host = usual_host();
        assert_eq!(served(&host, &[], &AddressPolicy::Default), ["192.0.2.11"]);
        assert_eq!(
            served(
                &host,
                &["203.0.113.5", "198.51.100.7"],
                &AddressPolicy::Default
            ),
            ["192.0.2.11", "203.0.113.5"],
            "an address that no interface has is not served"
        );
    }

    #[test]
    fn cidrs_choose_instead_but_never_what_is_not_the_hosts() {
        let within = |networks: &[&str]| {
            AddressPolicy::Within(networks.iter().map(|n| n.parse().unwrap()).collect())
        };
        let host = usual_host();
        assert_eq!(
            served(&host, &["192.0.2.11"], &within(&["203.0.113.0/24"])),
            ["203.0.113.5"]
        );
        assert_eq!(
            served(&host, &[], &within(&["127.0.0.0/8", "10.96.0.0/16"])),
            Vec::<String>::new()
        );
    }
}
