//! One function per reader.

mod arbitration;
mod cluster;
mod conntrack;
mod endpoint_slice;
mod kube_proxy;
mod nft_listing;
mod nftables;
mod plan;
mod report;
mod rtnetlink;
mod sctp;
mod selector;
mod service;
mod sock_diag;
mod source_ranges;
mod status_page;
mod texts;
mod updater;
mod updater_answer;

use highwire_agent::netlink::messages;
use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload};

use crate::Target;

/// Every target.
pub const ALL: [Target; 19] = [
    target("arbitration", arbitration::run),
    slow("cluster", cluster::run),
    target("conntrack", conntrack::run),
    target("endpoint_slice", endpoint_slice::run),
    target("kube_proxy", kube_proxy::run),
    target("nft_listing", nft_listing::run),
    target("nftables", nftables::run),
    slow("plan", plan::run),
    target("report", report::run),
    target("rtnetlink", rtnetlink::run),
    target("sctp", sctp::run),
    target("selector", selector::run),
    target("service", service::run),
    target("sock_diag", sock_diag::run),
    target("source_ranges", source_ranges::run),
    target("status_page", status_page::run),
    slow("texts", texts::run),
    target("updater", updater::run),
    slow("updater_answer", updater_answer::run),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target {
        name,
        run,
        is_slow: false,
    }
}

const fn slow(name: &'static str, run: fn(&[u8])) -> Target {
    Target {
        is_slow: true,
        ..target(name, run)
    }
}

/// The type of a netlink message, whatever is in it.
#[derive(Debug)]
struct Kind(u16);

impl NetlinkDeserializable for Kind {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, _: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(header.message_type))
    }
}

/// Whether all messages of a datagram are of these types.
fn are_of(datagram: &[u8], kinds: &[u16]) -> bool {
    messages::<Kind>(datagram).all(|message| match message {
        Ok(Some(NetlinkPayload::InnerMessage(Kind(kind)))) => kinds.contains(&kind),
        _ => true,
    })
}
