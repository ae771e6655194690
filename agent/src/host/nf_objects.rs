//! Whether nftables has a certain table or chain, of anybody: one question to the kernel
//! about one object (NFT_MSG_GETTABLE and NFT_MSG_GETCHAIN,
//! include/uapi/linux/netfilter/nf_tables.h). nft would load all tables for it.

use std::{io, time::Duration};

use highwire_api::Family;
use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use tokio::time::timeout;

/// The kernel answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_GETTABLE: u8 = 1;
const NFT_MSG_GETCHAIN: u8 = 4;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// The table's name, in both questions.
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const MESSAGE_HEADER: usize = 16;

/// What may be there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Object<'a> {
    /// A table.
    Table {
        /// Its address family.
        family: Family,
        /// Its name.
        name: &'a str,
    },
    /// A chain of a table.
    Chain {
        /// Its address family.
        family: Family,
        /// The table's name.
        table: &'a str,
        /// Its name.
        name: &'a str,
    },
}

/// Whether it is there. If the kernel cannot be asked it is not.
pub(super) async fn exists(object: Object<'_>) -> bool {
    matches!(timeout(ANSWER_TIMEOUT, ask(object)).await, Ok(Ok(true)))
}

async fn ask(object: Object<'_>) -> io::Result<bool> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().connect(&SocketAddr::new(0, 0))?;
    socket.send(&question(object)).await?;
    let (answer, _) = socket.recv_from_full().await?;
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
    Ok(kind.map(u16::from_ne_bytes) != Some(NLMSG_ERROR))
}

fn question(object: Object<'_>) -> Vec<u8> {
    let (kind, family, names) = match object {
        Object::Table { family, name } => (NFT_MSG_GETTABLE, family, vec![(NFTA_TABLE, name)]),
        Object::Chain {
            family,
            table,
            name,
        } => {
            let names = vec![(NFTA_TABLE, table), (NFTA_CHAIN_NAME, name)];
            (NFT_MSG_GETCHAIN, family, names)
        }
    };
    let family = match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    };
    let mut body = vec![family, 0, 0, 0];
    for (attribute, name) in names {
        let length = u16::try_from(4 + name.len() + 1).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(MESSAGE_HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(u16::from_le_bytes([kind, NFNL_SUBSYS_NFTABLES]).to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.resize(MESSAGE_HEADER, 0); // no sequence number, from us
    message.extend(body);
    message
}
