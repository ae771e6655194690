//! Asking the kernel by netlink, and reading its answers one message at a time: however
//! long a list is, it is never in memory as a whole.

use std::{io, iter};

use netlink_packet_core::{
    DecodeError, NLM_F_REQUEST, NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::Socket;
use thiserror::Error;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The socket cannot be used.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// The kernel refused.
    #[error("refused: {0}")]
    Refused(#[source] io::Error),
    /// The answer is no netlink.
    #[error("the answer cannot be read: {0}")]
    Read(#[from] DecodeError),
}

/// Sends a request on the socket and hands each message of the answer to `each`, until
/// the kernel says that it is done. For that, `flags` has `NLM_F_DUMP` or `NLM_F_ACK`.
/// Returns how many messages could not be read and were passed over. Blocks.
///
/// # Errors
/// If the kernel cannot be asked or refuses.
pub fn ask<M>(
    socket: &Socket,
    flags: u16,
    request: M,
    each: impl FnMut(M),
) -> Result<u64, NetlinkError>
where
    M: NetlinkDeserializable + NetlinkSerializable,
{
    let mut bytes = Vec::new();
    write(&mut bytes, flags, request);
    socket.send(&bytes, 0)?;
    answer(socket, each)
}

/// Appends a request, as the kernel reads it; one that is sent may consist of several.
pub fn write<M: NetlinkSerializable>(bytes: &mut Vec<u8>, flags: u16, request: M) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len(), 0);
    message.serialize(&mut bytes[start..]);
}

/// Hands each message of the answer to what was sent to `each`, as [`ask`] does.
///
/// # Errors
/// If there is no answer, or the kernel refused.
pub fn answer<M: NetlinkDeserializable>(
    socket: &Socket,
    mut each: impl FnMut(M),
) -> Result<u64, NetlinkError> {
    let mut unreadable = 0;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in messages(&datagram) {
            match message? {
                None => unreadable += 1,
                Some(NetlinkPayload::InnerMessage(message)) => each(message),
                Some(NetlinkPayload::Done(_)) => return Ok(unreadable),
                Some(NetlinkPayload::Error(answer)) => {
                    return match answer.code {
                        None => Ok(unreadable),
                        Some(_) => Err(NetlinkError::Refused(answer.to_io())),
                    };
                }
                Some(_) => {}
            }
        }
    }
}

/// The messages of one datagram. `None` is one that cannot be read; where the next one
/// begins is known all the same. An error is the last item.
pub fn messages<M: NetlinkDeserializable>(
    datagram: &[u8],
) -> impl Iterator<Item = Result<Option<NetlinkPayload<M>>, DecodeError>> {
    let mut rest = datagram;
    iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = std::mem::take(&mut rest);
        let header = match NetlinkBuffer::new_checked(message) {
            Ok(header) => header,
            Err(error) => return Some(Err(error)),
        };
        // Messages are aligned to four bytes (netlink(7)).
        let length = (header.length() as usize).next_multiple_of(4);
        let is_entry = header.message_type() > NLMSG_OVERRUN;
        match NetlinkMessage::<M>::deserialize(message) {
            Err(error) if !is_entry => Some(Err(error)),
            read => {
                rest = message.get(length..).unwrap_or_default();
                Some(Ok(read.ok().map(|message| message.payload)))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::NetfilterMessage;

    use super::*;

    /// A message that holds nothing but a netfilter header.
    fn message(length: u32) -> Vec<u8> {
        const KIND: u16 = 10 << 8; // of nftables
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(KIND.to_ne_bytes());
        bytes.resize(20, 0);
        bytes
    }

    fn read(datagram: &[u8]) -> Vec<Option<bool>> {
        let each = |message: Result<Option<_>, _>| message.ok().map(|m| m.is_some());
        messages::<NetfilterMessage>(datagram).map(each).collect()
    }

    #[test]
    fn one_that_cannot_be_read_hides_no_other() {
        let mut broken = message(24);
        broken.extend(u32::MAX.to_ne_bytes()); // an attribute longer than its message
        let datagram = [message(20), broken, message(20)].concat();
        assert_eq!(read(&datagram), [Some(true), Some(false), Some(true)]);
    }

    #[test]
    fn a_datagram_that_ends_early_is_an_error() {
        assert_eq!(read(&message(20)[..10]), [None]);
        assert_eq!(read(&message(99)), [None]);
        assert_eq!(read(&message(3)), [None], "shorter than a header");
    }
}
