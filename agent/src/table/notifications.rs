//! Notices every change of our table, by nftables' own notifications
//! (kernel include/uapi/linux/netfilter/nf_tables.h).
//!
//! `nft flush ruleset`, which a reload of firewalld or nftables.service does,
//! removes every table, ours included. Other programs' tables are never read: of each
//! notification only the name of its table matters.

use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, Nla, NlasIterator,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterProtoFamily, NetfilterSubsystem,
    nftables::{NfTablesMessageType, TableAttribute},
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    libc::NFNLGRP_NFTABLES,
    sys::socket::{setsockopt, sockopt},
};
use tokio::sync::mpsc;

use super::TABLE;
use crate::netlink::messages;

/// Something happened to the ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableEvent {
    /// One transaction, of any program, changed our table.
    Changed,
    /// Notifications were lost or cannot be read: anything may have happened.
    Missed,
}

/// For what comes while we are busy: kube-proxy's table of 3,000 Services being rebuilt
/// is some MiB. The kernel takes the memory only as long as it is unread.
const RECEIVE_BUFFER: usize = 32 << 20;

/// Sends an event, turned into an `Input` by `wrap`, for every transaction that changed
/// our table, until the receiver is dropped.
///
/// # Errors
/// If the netlink socket cannot be used.
pub async fn follow<Input>(
    sender: mpsc::Sender<Input>,
    wrap: impl Fn(TableEvent) -> Input,
) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN in the initial user namespace.
    if setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(socket.socket_ref(), sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    socket.socket_mut().bind_auto()?;
    let group = NFNLGRP_NFTABLES.unsigned_abs();
    socket.socket_mut().add_membership(group)?;
    let mut touched = false;
    loop {
        let events = match socket.recv_from_full().await {
            Ok((datagram, _)) => changes(&datagram, &mut touched),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                touched = false;
                vec![TableEvent::Missed]
            }
            Err(error) => return Err(error),
        };
        for event in events {
            if sender.send(wrap(event)).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The transactions that end in this datagram and changed our table. `touched` says
/// whether the one that has not ended yet did so far.
pub fn changes(datagram: &[u8], touched: &mut bool) -> Vec<TableEvent> {
    let mut events = Vec::new();
    for message in messages(datagram) {
        match message {
            Ok(Some(NetlinkPayload::InnerMessage(Notification::OurTable))) => *touched = true,
            Ok(Some(NetlinkPayload::InnerMessage(Notification::End))) => {
                if std::mem::take(touched) {
                    events.push(TableEvent::Changed);
                }
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => events.push(TableEvent::Missed),
        }
    }
    events
}

/// One notification, read no further than the name of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notification {
    /// Our table, or something in it, was changed.
    OurTable,
    /// The last one of a transaction.
    End,
    Other,
}

impl NetlinkDeserializable for Notification {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let [kind, subsystem] = header.message_type.to_le_bytes();
        if subsystem != u8::from(NetfilterSubsystem::NfTables) {
            return Ok(Self::Other);
        }
        if kind == u8::from(NfTablesMessageType::NewGen) {
            return Ok(Self::End);
        }
        let header = NetfilterHeader::parse(payload)?;
        if header.family != NetfilterProtoFamily::Inet {
            return Ok(Self::Other);
        }
        // In messages about something in a table, its name has the same number.
        let table = TableAttribute::Name(String::new()).kind();
        for attribute in NlasIterator::new(&payload[header.buffer_len()..]) {
            let attribute = attribute?;
            if attribute.kind() == table {
                let ours = attribute.value().strip_suffix(b"\0") == Some(TABLE.as_bytes());
                return Ok(if ours { Self::OurTable } else { Self::Other });
            }
        }
        Ok(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkMessage;
    use netlink_packet_netfilter::{
        NetfilterMessage,
        nftables::{GenMessage, NfTablesMessage, TableMessage},
    };

    use super::*;

    fn notification(family: NetfilterProtoFamily, inner: NfTablesMessage) -> Vec<u8> {
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn deleted(family: NetfilterProtoFamily, table: &str) -> Vec<u8> {
        let attributes = vec![TableAttribute::Name(table.to_owned())];
        let inner = NfTablesMessage::DeleteTable(TableMessage { attributes });
        notification(family, inner)
    }

    fn end() -> Vec<u8> {
        let attributes = Vec::new();
        let inner = NfTablesMessage::NewGen(GenMessage { attributes });
        notification(NetfilterProtoFamily::Unspec, inner)
    }

    #[test]
    fn a_transaction_on_our_table_is_one_event() {
        let ours = deleted(NetfilterProtoFamily::Inet, TABLE);
        let mut touched = false;
        assert_eq!(changes(&[ours.clone(), ours].concat(), &mut touched), []);
        assert_eq!(changes(&end(), &mut touched), [TableEvent::Changed]);
        assert_eq!(changes(&end(), &mut touched), [], "another one, not ours");
    }

    #[test]
    fn other_tables_cause_no_event() {
        use NetfilterProtoFamily::{IPv4, Inet};
        for (family, table) in [(IPv4, TABLE), (Inet, "filter"), (Inet, "highwire2")] {
            let datagram = [deleted(family, table), end()].concat();
            assert_eq!(changes(&datagram, &mut false), []);
        }
    }

    #[test]
    fn what_cannot_be_read_is_missed() {
        let whole = deleted(NetfilterProtoFamily::Inet, TABLE);
        assert_eq!(changes(&whole, &mut false), []);
        for end in 1..whole.len() {
            assert_eq!(changes(&whole[..end], &mut false), [TableEvent::Missed]);
        }
    }
}
