//! Links, addresses and routes of the host.

use highwire_agent::{
    facts::addresses::{is_default, link, local_address, outputs},
    netlink::messages,
};
use netlink_packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;

pub(super) fn run(input: &[u8]) {
    for message in messages::<Message>(input) {
        let Ok(Some(NetlinkPayload::InnerMessage(message))) = message else {
            continue;
        };
        match message {
            Message::NewLink(message) => {
                let index = message.header.index;
                assert!(link(message).is_none_or(|(of, _)| of == index));
            }
            Message::NewAddress(message) => drop(local_address(&message)),
            Message::NewRoute(route) if is_default(&route) => drop(outputs(&route)),
            _ => {}
        }
    }
}
