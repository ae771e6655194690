//! Entries of conntrack, by ctnetlink.

use highwire_agent::{netlink::messages, udp::conntrack::flow};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_netfilter::NetfilterMessage;

use super::are_of;
use crate::plain::assert_plain;

pub(super) fn run(input: &[u8]) {
    // An entry (`IPCTNL_MSG_CT_NEW`), the only thing that the agent asks for.
    if !are_of(input, &[1 << 8]) {
        return;
    }
    let mut read = 0;
    for message in messages::<NetfilterMessage>(input) {
        read += 1;
        if let Ok(Some(NetlinkPayload::InnerMessage(message))) = message
            && let Some(flow) = flow(&message)
        {
            assert_plain("a flow", &flow.to_string());
        }
    }
    // Each has a header of 16 bytes; the last one may be broken.
    assert!(read <= input.len() / 16 + 1, "{read} messages");
}
