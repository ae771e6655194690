//! Sockets, by sock_diag.

use highwire_agent::{facts::listeners::listener, netlink::messages};
use highwire_api::Protocol;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_sock_diag::SockDiagMessage;

use crate::plain::assert_plain;

pub(super) fn run(input: &[u8]) {
    for message in messages::<SockDiagMessage>(input) {
        let Ok(Some(NetlinkPayload::InnerMessage(message))) = message else {
            continue;
        };
        if let SockDiagMessage::InetResponse(response) = message
            && let Some(listener) = listener(Protocol::Tcp, &response)
        {
            assert!(listener.port().is_some(), "{listener:?}");
            assert_plain("a listener", &listener.to_string());
        }
    }
}
