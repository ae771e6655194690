//! What nftables says by netlink: notifications, counters, the number of the ruleset.

use highwire_agent::{
    netlink::messages,
    table::{counters::counter, generation, notifications::changes},
};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_netfilter::NetfilterMessage;

use super::{Kind, are_of};

/// What the agent asks for: a table, the ruleset's number, a counter (`NFT_MSG_NEW…`, kernel
/// include/uapi/linux/netfilter/nf_tables.h). The crate that decodes panics on some broken
/// rules; of notifications, which may have any, our own code reads all that is read.
const ASKED_FOR: [u16; 3] = [10 << 8, 10 << 8 | 15, 10 << 8 | 18];

pub(super) fn run(input: &[u8]) {
    let count = messages::<Kind>(input).count();
    let mut touched = false;
    let events = changes(input, &mut touched);
    assert!(events.len() <= count, "{events:?} of {count} messages");
    if !are_of(input, &ASKED_FOR) {
        return;
    }
    for message in messages::<NetfilterMessage>(input) {
        if let Ok(Some(NetlinkPayload::InnerMessage(message))) = message {
            let both = counter(1, &message).is_some() && generation::number(&message).is_some();
            assert!(!both, "a counter is no number of the ruleset");
        }
    }
}
