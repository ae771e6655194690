//! Asking the kernel for lists over netlink, one message at a time: however long a list
//! is, it is never in memory.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::sys::Socket;
use thiserror::Error;

/// Why a list cannot be had.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The socket cannot be used, or the kernel refused.
    #[error(transparent)]
    Ask(#[from] io::Error),
    /// The answer is no netlink.
    #[error("it cannot be read: {0}")]
    Read(#[from] DecodeError),
}

/// Hands each message of a list to `each`. One that cannot be read is passed over. It
/// blocks until the kernel has told all.
///
/// # Errors
/// If the kernel does not answer.
pub fn dump<M>(protocol: isize, request: M, mut each: impl FnMut(M)) -> Result<(), DumpError>
where
    M: NetlinkDeserializable + NetlinkSerializable,
{
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(protocol)?;
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest)?;
            let is_entry = header.message_type() > NLMSG_OVERRUN;
            // Messages are aligned to four bytes (netlink(7)).
            let length = (header.length() as usize).next_multiple_of(4);
            match NetlinkMessage::<M>::deserialize(rest) {
                Err(_) if is_entry => {}
                Err(error) => return Err(error.into()),
                Ok(message) => match message.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                    _ => {}
                },
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
