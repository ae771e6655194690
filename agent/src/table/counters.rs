//! The table's counters, by netlink: nft would load all of the table's elements for them.

use netlink_packet_core::{DefaultNla, NLM_F_DUMP, Nla, NlasIterator, parse_u64_be};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::NfTablesMessage,
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use super::TABLE;
use crate::netlink::{NetlinkError, ask};

// Kernel include/uapi/linux/netfilter/nf_tables.h.
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFT_OBJECT_COUNTER: u32 = 1;

/// nft list counters table inet highwire: how many new connections each of the counters has
/// seen; none without the table. Blocks.
///
/// # Errors
/// If the kernel does not answer.
pub fn read() -> Result<Vec<(String, u64)>, NetlinkError> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    let table = [TABLE.as_bytes(), b"\0"].concat();
    let question = NfTablesMessage::GetObject(vec![
        DefaultNla::new(NFTA_OBJ_TABLE, table),
        DefaultNla::new(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER.to_be_bytes().to_vec()),
    ]);
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let question = NetfilterMessage::new(header, question);
    let mut counters = Vec::new();
    ask(&socket, NLM_F_DUMP, question, |message| {
        counters.extend(counter(&message));
    })?;
    Ok(counters)
}

fn counter(message: &NetfilterMessage) -> Option<(String, u64)> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewObject(attributes)) = &message.inner
    else {
        return None;
    };
    let value = |kind| {
        let found = attributes
            .iter()
            .find(|attribute| attribute.kind() == kind)?;
        let mut value = vec![0; found.value_len()];
        found.emit_value(&mut value);
        Some(value)
    };
    let name = String::from_utf8(value(NFTA_OBJ_NAME)?).ok()?;
    let data = value(NFTA_OBJ_DATA)?;
    let mut parts = NlasIterator::new(&data[..]).flatten();
    let packets = parts.find(|part| part.kind() == NFTA_COUNTER_PACKETS)?;
    let name = name.trim_end_matches('\0').to_owned();
    Some((name, parse_u64_be(packets.value()).ok()?))
}
