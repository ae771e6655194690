//! The table's counters, by netlink: nft would load all of the table's elements for them.

use std::{collections::BTreeMap, io};

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_DUMP, Nla, NlasIterator, parse_u64_be};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{NfTablesMessage, TableAttribute, TableMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use super::TABLE;
use crate::netlink::{NetlinkError, ask};

// Kernel include/uapi/linux/netfilter/nf_tables.h.
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_OBJ_HANDLE: u16 = 6;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFT_OBJECT_COUNTER: u32 = 1;

/// What one reading found: the counters by name, none without the table.
pub type Reading = BTreeMap<String, Counter>;

/// A counter as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Which one of this name it is: one that replaces it has another identity.
    pub identity: Identity,
    /// How many new connections it has seen.
    pub packets: u64,
}

/// The kernel's numbers of a counter: it numbers tables, and in a table its objects, and
/// never gives out a number twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Of its table.
    pub table: u64,
    /// In that table.
    pub object: u64,
}

/// nft list counters table inet highwire. Blocks.
///
/// # Errors
/// If the kernel does not answer.
pub fn read() -> Result<Reading, NetlinkError> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    let mut table = table_handle(&socket)?;
    loop {
        let Some(number) = table else {
            return Ok(Reading::new());
        };
        let counters = counters_of(&socket, number)?;
        // Meanwhile the table may have been replaced.
        let now = table_handle(&socket)?;
        if now == table {
            return Ok(counters);
        }
        table = now;
    }
}

fn name_of_table() -> Vec<u8> {
    [TABLE.as_bytes(), b"\0"].concat()
}

fn header() -> NetfilterHeader {
    NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0)
}

/// The number of the table; `None` if there is none.
fn table_handle(socket: &Socket) -> Result<Option<u64>, NetlinkError> {
    let attributes = vec![TableAttribute::Name(TABLE.to_owned())];
    let question = NfTablesMessage::GetTable(TableMessage { attributes });
    let question = NetfilterMessage::new(header(), question);
    let mut handle = None;
    let asked = ask(socket, NLM_F_ACK, question, |message| {
        if let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = &message.inner {
            handle = table
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    TableAttribute::Handle(handle) => Some(*handle),
                    _ => None,
                });
        }
    });
    match asked {
        Err(NetlinkError::Refused(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(_) => Ok(handle),
    }
}

fn counters_of(socket: &Socket, table: u64) -> Result<Reading, NetlinkError> {
    let question = NfTablesMessage::GetObject(vec![
        DefaultNla::new(NFTA_OBJ_TABLE, name_of_table()),
        DefaultNla::new(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER.to_be_bytes().to_vec()),
    ]);
    let question = NetfilterMessage::new(header(), question);
    let mut counters = Reading::new();
    ask(socket, NLM_F_DUMP, question, |message| {
        counters.extend(counter(table, &message));
    })?;
    Ok(counters)
}

/// The counter that a message of the kernel is about, and its name; `table` is the number
/// of its table.
#[must_use]
pub fn counter(table: u64, message: &NetfilterMessage) -> Option<(String, Counter)> {
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
    let object = parse_u64_be(&value(NFTA_OBJ_HANDLE)?).ok()?;
    let data = value(NFTA_OBJ_DATA)?;
    let mut parts = NlasIterator::new(&data[..]).flatten();
    let packets = parts.find(|part| part.kind() == NFTA_COUNTER_PACKETS)?;
    let name = name.trim_end_matches('\0').to_owned();
    let counter = Counter {
        identity: Identity { table, object },
        packets: parse_u64_be(packets.value()).ok()?,
    };
    Some((name, counter))
}
