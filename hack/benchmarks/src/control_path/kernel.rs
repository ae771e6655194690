//! Whether a node's kernel has an element of our table: one question, and nothing is listed.

use highwire_agent::netlink::ask;
use highwire_agent::nftables_key::protocol_and_port;
use highwire_api::Protocol;
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
    SetElementMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

/// nft get element inet highwire ports4 { tcp . 80 }, in this network namespace.
pub(crate) fn serves_tcp(port: u16) -> bool {
    let key = DataAttribute::Value(protocol_and_port(Protocol::Tcp, port).to_vec());
    let element = ListAttribute::Element(vec![SetElementAttribute::Key(key)]);
    let question = NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table("highwire".to_owned()),
            SetElementList::Set("ports4".to_owned()),
            SetElementList::Elements(vec![element]),
        ],
    });
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let question = NetfilterMessage::new(header, question);
    let Ok(socket) = Socket::new(NETLINK_NETFILTER) else {
        return false;
    };
    ask(&socket, NLM_F_ACK, question, |_: NetfilterMessage| {}).is_ok()
}
