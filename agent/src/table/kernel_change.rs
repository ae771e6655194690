//! Changes of elements by netlink (kernel net/netfilter/nf_tables_api.c). nft could make them
//! too, but its start takes many times longer than the change, and longer still beside large
//! tables of others.

use std::io;

use highwire_api::PortKey;
use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    NetfilterSubsystem,
    nftables::{
        DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
        SetElementMessage,
    },
    none::ControlMessage,
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    TABLE,
    sets::{Element, Key, Value},
};
use crate::{
    netlink::{NetlinkError, answer, write},
    nftables_key::{address, protocol_and_port},
};

/// An attribute has at most 65,535 bytes (netlink(7)); an element takes at most 100.
const ELEMENTS_PER_MESSAGE: usize = 500;
/// `NFTA_DATA_VALUE` (kernel include/uapi/linux/netfilter/nf_tables.h).
const DATA_VALUE: u16 = 1;

/// Deletes and adds these elements of our table, all or none. Returns how many bytes the
/// kernel was given. Blocks.
///
/// # Errors
/// If the kernel cannot be asked or refuses: without the table, or if an element to be
/// deleted is not there, that is `ENOENT`.
pub(super) fn carry_out(
    delete: &[Element],
    add: &[(Element, Option<Value>)],
) -> Result<usize, NetlinkError> {
    let bytes = batch(delete, add);
    let socket = Socket::new(NETLINK_NETFILTER)?;
    // What is sent must fit; beyond net.core.wmem_max only with CAP_NET_ADMIN in the initial
    // user namespace.
    let room = bytes.len() * 2;
    if setsockopt(&socket, sockopt::SndBufForce, &room).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &room).map_err(io::Error::from)?;
    }
    socket.send(&bytes, 0)?;
    answer::<NetfilterMessage>(&socket, |_| {})?;
    Ok(bytes.len())
}

/// nft delete element inet highwire SET { … }; add element inet highwire SET { … }
fn batch(delete: &[Element], add: &[(Element, Option<Value>)]) -> Vec<u8> {
    let deleted: Vec<_> = delete.iter().map(|element| (*element, None)).collect();
    let deletions = messages(&deleted, NfTablesMessage::DeleteSetElement);
    let additions = messages(add, NfTablesMessage::NewSetElement);
    let deletions = deletions.into_iter().map(|message| (0, message));
    let additions = additions.into_iter().map(|message| (NLM_F_CREATE, message));
    let mut changes = deletions.chain(additions).peekable();
    let mut bytes = Vec::new();
    write(&mut bytes, 0, control(ControlMessage::BatchBegin));
    while let Some((flags, change)) = changes.next() {
        // The kernel answers to the last one, and before that to each that it refuses.
        let is_last = changes.peek().is_none();
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let change = NetfilterMessage::new(header, change);
        write(
            &mut bytes,
            if is_last { flags | NLM_F_ACK } else { flags },
            change,
        );
    }
    write(&mut bytes, 0, control(ControlMessage::BatchEnd));
    bytes
}

/// Where a transaction of nftables begins or ends.
fn control(message: ControlMessage) -> NetfilterMessage {
    let subsystem = u8::from(NetfilterSubsystem::NfTables).into();
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem);
    NetfilterMessage::new(header, NetfilterMessageInner::None(message))
}

/// Messages of that `kind`, each about elements of one set.
fn messages(
    elements: &[(Element, Option<Value>)],
    kind: fn(SetElementMessage) -> NfTablesMessage,
) -> Vec<NfTablesMessage> {
    let of_one_set = elements.chunk_by(|(a, _), (b, _)| a.set == b.set);
    let groups = of_one_set.flat_map(|group| group.chunks(ELEMENTS_PER_MESSAGE));
    groups
        .map(|group| {
            let set = group[0].0.set;
            let elements = group
                .iter()
                .map(|(element, value)| attributes(element, *value));
            kind(SetElementMessage {
                attributes: vec![
                    SetElementList::Table(TABLE.to_owned()),
                    SetElementList::Set(set.name()),
                    SetElementList::Elements(elements.map(ListAttribute::Element).collect()),
                ],
            })
        })
        .collect()
}

fn attributes(element: &Element, value: Option<Value>) -> Vec<SetElementAttribute> {
    let (key, end) = key(&element.key);
    let key = SetElementAttribute::Key(DataAttribute::Value(key));
    let end = end.map(|end| SetElementAttribute::KeyEnd(vec![DefaultNla::new(DATA_VALUE, end)]));
    let value = value.map(|value| SetElementAttribute::Data(DataAttribute::Value(data(value))));
    [Some(key), end, value].into_iter().flatten().collect()
}

/// A key; of a network its first and its last address.
fn key(key: &Key) -> (Vec<u8>, Option<Vec<u8>>) {
    match key {
        Key::Address(ip) => (address(*ip), None),
        Key::ToItself(ip) => ([address(*ip), address(*ip)].concat(), None),
        Key::Port(port) => (port_key(*port).to_vec(), None),
        Key::PortAndNetwork(port, network) => {
            let with = |ip| [&port_key(*port)[..], &address(ip)].concat();
            (with(network.network()), Some(with(network.broadcast())))
        }
        Key::PortAndTarget(port, target) => {
            let value = Value::AddressAndPort(target.ip(), target.port());
            ([&port_key(*port)[..], &data(value)].concat(), None)
        }
        // `numgen` and `jhash` leave the number in the byte order of this host.
        Key::PortAndBucket(port, bucket) => {
            let number = u32::from(bucket.number()).to_ne_bytes();
            ([&port_key(*port)[..], &number].concat(), None)
        }
    }
}

fn port_key(port: PortKey) -> [u8; 8] {
    protocol_and_port(port.protocol, port.port.get())
}

fn data(value: Value) -> Vec<u8> {
    match value {
        Value::Address(ip) => address(ip),
        Value::Port(port) => port.get().to_be_bytes().to_vec(),
        Value::AddressAndPort(ip, port) => {
            [&address(ip)[..], &port.to_be_bytes(), &[0, 0]].concat()
        }
    }
}
