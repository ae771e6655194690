//! The host's addresses, read and followed by rtnetlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::{NLM_F_DUMP, NetlinkMessage, NetlinkPayload};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc},
    task::spawn_blocking,
    time::sleep,
};

use crate::netlink::{NetlinkError, ask};

/// One address of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// The interface that has it.
    pub interface: String,
    /// Its index, and that of its VRF or bridge: a socket bound to one of them gets what
    /// comes for the address.
    pub devices: BTreeSet<u32>,
    /// Whether it has global scope (not host or link).
    pub global: bool,
    /// Whether its interface carries a default route.
    pub on_default_route: bool,
}

/// Why the host's addresses cannot be read.
#[derive(Debug, Error)]
pub enum AddressError {
    /// The netlink socket cannot be opened.
    #[error("cannot open an rtnetlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel did not answer a request.
    #[error("cannot list the host's {what}: {source}")]
    List {
        /// What was asked for.
        what: &'static str,
        /// What became of it.
        source: NetlinkError,
    },
    /// Notifications ended: the socket is gone.
    #[error("the rtnetlink socket was closed")]
    Closed,
}

/// After a notification, the addresses are read so much later: a change of one interface
/// sends several.
const SETTLE: Duration = Duration::from_millis(20);

type Notifications = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Sends the host's addresses, turned into an `Input` by `wrap`, now and after every
/// change of them, until the receiver is dropped.
///
/// # Errors
/// If the kernel's netlink cannot be used; it never ends for another reason.
pub async fn follow<Input>(
    sender: mpsc::Sender<Input>,
    wrap: impl Fn(Vec<HostAddress>) -> Input,
) -> Result<(), AddressError> {
    let (connection, _handle, notifications) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])
    .map_err(AddressError::Open)?;
    let _connection = AbortOnDrop(tokio::spawn(connection));
    let changed = Notify::new();
    tokio::select! {
        () = drain(notifications, &changed) => Err(AddressError::Closed),
        result = read_after_changes(sender, wrap, &changed) => result,
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes notifications as fast as they come, so that however many there are (a routing
/// daemon sends thousands a second), none waits, and says which ones matter. Ends with
/// the socket.
async fn drain(mut notifications: Notifications, changed: &Notify) {
    while let Some((message, _)) = notifications.next().await {
        if matters(&message) {
            // However often it is said, it is one change until it is looked at.
            changed.notify_one();
        }
    }
}

async fn read_after_changes<Input>(
    sender: mpsc::Sender<Input>,
    wrap: impl Fn(Vec<HostAddress>) -> Input,
    changed: &Notify,
) -> Result<(), AddressError> {
    let mut known = None;
    loop {
        // The kernel's answers take their time where it has many routes.
        let addresses = spawn_blocking(read).await;
        let addresses = addresses.map_err(|error| AddressError::Open(error.into()))??;
        if known.as_ref() != Some(&addresses) {
            if sender.send(wrap(addresses.clone())).await.is_err() {
                return Ok(());
            }
            known = Some(addresses);
        }
        changed.notified().await;
        sleep(SETTLE).await;
    }
}

/// Pod routes come and go all day; only links, addresses and default routes matter here.
fn matters(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => is_default(route),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
            | RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_),
        )
        | NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

/// Of the main table: what a VPN or a VRF has in a table of its own says nothing about
/// where clients come from.
#[must_use]
pub fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && route.header.table == RouteHeader::RT_TABLE_MAIN
}

/// What matters of an interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// The index of its VRF or bridge.
    pub controller: Option<u32>,
}

/// One that an admin has set down is out of service, though the kernel goes on answering
/// for its IPv4 addresses (it drops IPv6 ones). One without carrier is not: the kernel
/// answers for its addresses of both families by whatever interface clients come.
#[must_use]
pub fn link(message: LinkMessage) -> Option<(u32, Link)> {
    if !message.header.flags.contains(LinkFlags::Up) {
        return None;
    }
    let mut link = Link {
        name: String::new(),
        controller: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            _ => {}
        }
    }
    Some((message.header.index, link))
}

/// Reads the addresses of interfaces that are up. Blocks.
///
/// # Errors
/// If the kernel does not answer.
pub fn read() -> Result<Vec<HostAddress>, AddressError> {
    let mut links = BTreeMap::new();
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    list("links", request, |message| {
        if let RouteNetlinkMessage::NewLink(message) = message {
            links.extend(link(message));
        }
    })?;
    let mut default_links = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        list(
            "routes",
            RouteNetlinkMessage::GetRoute(request),
            |message| {
                // Of thousands, only the default ones are kept.
                if let RouteNetlinkMessage::NewRoute(route) = message
                    && is_default(&route)
                {
                    default_links.extend(outputs(&route));
                }
            },
        )?;
    }
    let mut addresses = Vec::new();
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    list("addresses", request, |message| {
        let RouteNetlinkMessage::NewAddress(message) = message else {
            return;
        };
        let index = message.header.index;
        if let (Some(address), Some(link)) = (local_address(&message), links.get(&index)) {
            let devices = [Some(index), link.controller];
            addresses.push(HostAddress {
                address,
                interface: link.name.clone(),
                devices: devices.into_iter().flatten().collect(),
                global: message.header.scope == AddressScope::Universe,
                on_default_route: default_links.contains(&index),
            });
        }
    })?;
    addresses.sort();
    Ok(addresses)
}

fn list(
    what: &'static str,
    request: RouteNetlinkMessage,
    each: impl FnMut(RouteNetlinkMessage),
) -> Result<(), AddressError> {
    let socket = Socket::new(NETLINK_ROUTE).map_err(AddressError::Open)?;
    let listed = ask(&socket, NLM_F_DUMP, request, each);
    listed.map_err(|source| AddressError::List { what, source })?;
    Ok(())
}

/// The links a route leaves by: one, or one per next hop of a multipath route.
#[must_use]
pub fn outputs(route: &RouteMessage) -> Vec<u32> {
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
#[must_use]
pub fn local_address(message: &AddressMessage) -> Option<IpAddr> {
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

    #[test]
    fn only_default_routes_of_the_main_table_count() {
        let route = |length, table, kind| {
            let mut route = RouteMessage::default();
            route.header.destination_prefix_length = length;
            route.header.table = table;
            route.header.kind = kind;
            is_default(&route)
        };
        let (main, unicast) = (RouteHeader::RT_TABLE_MAIN, RouteType::Unicast);
        assert!(route(0, main, unicast));
        assert!(!route(24, main, unicast));
        assert!(!route(0, main, RouteType::BlackHole));
        assert!(!route(0, 51, unicast), "a VPN's own table");
    }
}
