//! Notices every change of our table, by nftables' own notifications
//! (NETLINK_NETFILTER, group NFNLGRP_NFTABLES; kernel
//! include/uapi/linux/netfilter/nf_tables.h).
//!
//! `nft flush ruleset`, which a reload of firewalld or nftables.service does,
//! removes every table, ours included. We never read foreign tables; all this
//! looks at is the table name in each notification.

use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_NETFILTER};
use tokio::sync::mpsc;

use crate::ruleset::TABLE;

/// Something happened to the ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableEvent {
    /// One transaction, of anybody, changed our table.
    Changed,
    /// The kernel had more to tell than we read: anything may have happened.
    Missed,
}

const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u8 = 10;
/// The last message of a transaction.
const NFT_MSG_NEWGEN: u8 = 15;
const NFPROTO_INET: u8 = 1;
/// In every message about a table or something in it, the table's name.
const NFTA_TABLE_NAME: u16 = 1;
/// Attribute types carry flags in their upper two bits (netlink(7)).
const NLA_TYPE_MASK: u16 = 0x3fff;
const ENOBUFS: i32 = 105;

/// For what the kernel tells while we are busy: kube-proxy's table of 3,000 Services
/// being rebuilt is some MiB. The kernel takes the memory only as long as it is unread.
const RECEIVE_BUFFER: usize = 32 << 20;

const MESSAGE_HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

/// Sends an event for every transaction that changed our table, until the
/// receiver is dropped.
///
/// # Errors
/// If the netlink socket cannot be used.
pub async fn follow(sender: mpsc::Sender<TableEvent>) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN in the initial user namespace.
    if setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(socket.socket_ref(), sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
    let mut touched = false;
    loop {
        let event = match socket.recv_from_full().await {
            Ok((datagram, _)) => changes(&datagram, &mut touched),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                touched = false;
                vec![TableEvent::Missed]
            }
            Err(error) => return Err(error),
        };
        for event in event {
            if sender.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The transactions that end in this datagram and changed our table. `touched`
/// carries over what of an unfinished one was seen.
fn changes(datagram: &[u8], touched: &mut bool) -> Vec<TableEvent> {
    let mut events = Vec::new();
    let mut rest = datagram;
    while let Some((kind, payload, next)) = message(rest) {
        match kind {
            NFT_MSG_NEWGEN => {
                if std::mem::take(touched) {
                    events.push(TableEvent::Changed);
                }
            }
            _ => *touched |= is_ours(payload),
        }
        rest = next;
    }
    events
}

/// The first nftables message: its kind, what follows its header, and the rest.
fn message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(MESSAGE_HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    let [kind, subsystem] = kind.to_le_bytes();
    if subsystem == NFNL_SUBSYS_NFTABLES {
        Some((kind, payload, rest))
    } else {
        message(rest)
    }
}

fn is_ours(payload: &[u8]) -> bool {
    let inet = payload.first() == Some(&NFPROTO_INET);
    let mut attributes = payload.get(FAMILY_HEADER..).unwrap_or_default();
    while let Some((kind, value, rest)) = attribute(attributes) {
        if kind == NFTA_TABLE_NAME {
            return inet && value.strip_suffix(b"\0") == Some(TABLE.as_bytes());
        }
        attributes = rest;
    }
    false
}

fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
    let value = bytes.get(ATTRIBUTE_HEADER..length)?;
    Some((
        kind,
        value,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELETE_TABLE: u8 = 2;

    fn notification(kind: u8, family: u8, table: &str) -> Vec<u8> {
        let name = [table.as_bytes(), b"\0"].concat();
        let mut attribute = u16::try_from(name.len() + 4)
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        attribute.extend(NFTA_TABLE_NAME.to_ne_bytes());
        attribute.extend(&name);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let length = u32::try_from(MESSAGE_HEADER + FAMILY_HEADER + attribute.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(u16::from_le_bytes([kind, NFNL_SUBSYS_NFTABLES]).to_ne_bytes());
        bytes.resize(MESSAGE_HEADER, 0);
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attribute);
        bytes
    }

    #[test]
    fn a_transaction_on_our_table_is_one_event() {
        let ours = notification(DELETE_TABLE, NFPROTO_INET, TABLE);
        let end = notification(NFT_MSG_NEWGEN, 0, "");
        let mut touched = false;
        assert_eq!(changes(&[ours.clone(), ours].concat(), &mut touched), []);
        assert_eq!(
            changes(&end, &mut touched),
            [TableEvent::Changed],
            "told at its end"
        );
        assert_eq!(changes(&end, &mut touched), [], "another one, not ours");
    }

    #[test]
    fn other_tables_are_nobodys_business() {
        let mut touched = false;
        for (family, table) in [
            (2, TABLE),
            (NFPROTO_INET, "filter"),
            (NFPROTO_INET, "highwire2"),
        ] {
            let foreign = notification(DELETE_TABLE, family, table);
            let end = notification(NFT_MSG_NEWGEN, 0, "");
            assert_eq!(changes(&[foreign, end].concat(), &mut touched), []);
        }
    }

    #[test]
    fn nonsense_is_survived() {
        let mut whole = notification(DELETE_TABLE, NFPROTO_INET, TABLE);
        for end in 0..whole.len() {
            changes(&whole[..end], &mut false);
        }
        whole[0] = 3; // shorter than a header
        assert_eq!(changes(&whole, &mut false), []);
    }
}
