//! How often nftables has been changed in this network namespace, by any program
//! (kernel net/netfilter/nf_tables_api.c, `base_seq`).

use std::io;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{GenAttribute, GenMessage, NfTablesMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use crate::netlink::{NetlinkError, ask};

/// The kernel's number of the ruleset as it is now. Each transaction that changes
/// something adds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u32);

impl Generation {
    /// Asks the kernel, which answers at once.
    ///
    /// # Errors
    /// If it cannot be asked or refuses.
    pub(super) fn now() -> Result<Self, NetlinkError> {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let attributes = Vec::new();
        let question = NfTablesMessage::GetGen(GenMessage { attributes });
        let mut generation = None;
        ask(
            &socket,
            NLM_F_ACK,
            NetfilterMessage::new(header, question),
            |answer| generation = generation.or(number(&answer)),
        )?;
        let missing = || io::Error::other("the kernel does not number its ruleset");
        Ok(Self(generation.ok_or_else(missing)?))
    }

    /// That after one more transaction. The kernel leaves 0 out.
    #[must_use]
    pub(super) fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(1))
    }
}

/// The number in an answer of the kernel.
#[must_use]
pub fn number(answer: &NetfilterMessage) -> Option<u32> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(answer)) = &answer.inner else {
        return None;
    };
    answer.attributes.iter().find_map(|it| match it {
        GenAttribute::Id(number) => Some(*number),
        _ => None,
    })
}
