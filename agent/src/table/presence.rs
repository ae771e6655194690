//! Whether the kernel has a table of ours at all: one question by netlink, for when nft cannot
//! be asked.

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    nftables::{NfTablesMessage, TableAttribute, TableMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

use super::TABLE;
use crate::netlink::{NetlinkError, ask};

/// Whether it is there. The kernel answers at once.
///
/// # Errors
/// If the kernel cannot be asked, or refuses for another reason.
pub(super) fn is_there() -> Result<bool, NetlinkError> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    let attributes = vec![TableAttribute::Name(TABLE.to_owned())];
    let question = NfTablesMessage::GetTable(TableMessage { attributes });
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let question = NetfilterMessage::new(header, question);
    match ask(&socket, NLM_F_ACK, question, |_| {}) {
        Ok(_) => Ok(true),
        Err(NetlinkError::Refused(error)) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
