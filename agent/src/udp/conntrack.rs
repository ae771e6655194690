//! Reading and deleting conntrack entries by ctnetlink (NETLINK_NETFILTER,
//! subsystem conntrack; kernel include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP,
    NLM_F_REQUEST, NLMSG_OVERRUN, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    Nla,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, ConntrackMessageType, IPTuple, ProtoTuple, Protocol,
        Tuple,
    },
};
use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};
use thiserror::Error;

use super::flow::{Flow, Tuple as FlowTuple};

/// Of an entry: tells it from others; a later one with the same tuples has another,
/// unless it is at the very same place in memory.
const CTA_ID: u16 = 12;
/// Of an entry, and of one of its tuples: only there if it is not zone 0.
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_ZONE: u16 = 3;
/// Which parts of the given original tuple the kernel compares in a dump, since
/// Linux 5.8 (flags: net/netfilter/nf_internals.h).
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_F_CTA_IP_DST: u32 = 1 << 1;
const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;
const ENOENT: i32 = 2;

/// Why flows cannot be read or deleted.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// The netlink socket cannot be used.
    #[error("cannot talk to the kernel's conntrack: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error(
        "the kernel refused to {step}: {source}; does the agent have CAP_NET_ADMIN, and is \
         nf_conntrack_netlink in this kernel?"
    )]
    Refused {
        /// What was asked for.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The answer is not understood.
    #[error("cannot read the kernel's answer about conntrack: {0}")]
    Read(#[from] DecodeError),
    /// There was no answer, or no end of it.
    #[error("the kernel's conntrack did not answer in time")]
    NoAnswer,
}

/// What a listing has brought.
#[derive(Debug, Default)]
pub struct Listed {
    /// The flows that were wanted.
    pub flows: Vec<Flow>,
    /// How many entries could not be read; whatever they are, they are not among
    /// `flows`.
    pub unreadable: u64,
}

/// A socket to the conntrack of the network namespace it was opened in. All that it
/// does blocks: the kernel walks the whole table, for 40 ms where that is made for
/// 262,144 entries.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the socket.
    ///
    /// # Errors
    /// If there is no netfilter in this kernel.
    pub fn open() -> Result<Self, ConntrackError> {
        let socket = Socket::new(NETLINK_NETFILTER).map_err(ConntrackError::Socket)?;
        Ok(Self { socket })
    }

    /// The UDP flows to that original address which are `wanted`. The kernel picks
    /// by protocol and, for IPv4, address: what else is tracked, however much, is
    /// not copied.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn udp_flows_to(
        &self,
        address: IpAddr,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Result<Listed, ConntrackError> {
        let tuple = ConntrackAttribute::CtaTupleOrig(vec![
            Tuple::Ip(vec![IPTuple::DestinationAddress(address)]),
            Tuple::Proto(vec![ProtoTuple::Protocol(Protocol::Udp)]),
        ]);
        let request = ConntrackMessage::Other {
            message_type: ConntrackMessageType::Get.into(),
            attributes: vec![plain(&tuple), filter(address)],
        };
        let mut flows = Vec::new();
        let step = || format!("list the UDP flows to {address}");
        let unreadable = self.ask(address, NLM_F_DUMP, request, step, |attributes| {
            let found = flow(attributes);
            // The kernel may list more than that; before 5.8, everything.
            let of_address = found.filter(|f| f.original.destination.ip() == address);
            flows.extend(of_address.filter(|flow| wanted(flow)));
        })?;
        Ok(Listed { flows, unreadable })
    }

    /// Deletes a flow. Says whether it was still there.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn delete(&self, flow: &Flow) -> Result<bool, ConntrackError> {
        let FlowTuple {
            source,
            destination,
        } = flow.original;
        let tuple = ConntrackAttribute::CtaTupleOrig(vec![
            Tuple::Ip(vec![
                IPTuple::SourceAddress(source.ip()),
                IPTuple::DestinationAddress(destination.ip()),
            ]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(Protocol::Udp),
                ProtoTuple::SourcePort(source.port()),
                ProtoTuple::DestinationPort(destination.port()),
            ]),
        ]);
        let id = DefaultNla::new(CTA_ID, flow.id.to_be_bytes().to_vec());
        let request = ConntrackMessage::Delete(vec![tuple, ConntrackAttribute::Other(id)]);
        let step = || format!("delete the flow {flow}");
        let answer = self.ask(destination.ip(), NLM_F_ACK, request, step, |_| {});
        match answer {
            Ok(_) => Ok(true),
            Err(ConntrackError::Refused { source, .. })
                if source.raw_os_error() == Some(ENOENT) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn ask(
        &self,
        family_of: IpAddr,
        flags: u16,
        request: ConntrackMessage,
        step: impl Fn() -> String,
        entry: impl FnMut(&[ConntrackAttribute]),
    ) -> Result<u64, ConntrackError> {
        self.send(family_of, flags, request)
            .map_err(ConntrackError::Socket)?;
        self.receive(step, entry)
    }

    fn send(&self, family_of: IpAddr, flags: u16, request: ConntrackMessage) -> io::Result<()> {
        let family = match family_of {
            IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
            IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let netfilter = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(netfilter));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Reads until the kernel says that it is done. Says how many entries could not be
    /// read.
    fn receive(
        &self,
        step: impl Fn() -> String,
        mut entry: impl FnMut(&[ConntrackAttribute]),
    ) -> Result<u64, ConntrackError> {
        let mut unreadable = 0;
        loop {
            let received = self.socket.recv_from_full();
            let (datagram, _) = received.map_err(ConntrackError::Socket)?;
            if read(&datagram, &step, &mut entry, &mut unreadable)? == Progress::Done {
                return Ok(unreadable);
            }
        }
    }
}

/// Whether more of an answer follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

/// Hands out the entries of one datagram. One that cannot be read is passed over and
/// counted, since where the next begins is known all the same.
fn read(
    datagram: &[u8],
    step: &impl Fn() -> String,
    entry: &mut impl FnMut(&[ConntrackAttribute]),
    unreadable: &mut u64,
) -> Result<Progress, ConntrackError> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let header = NetlinkBuffer::new_checked(rest)?;
        let is_entry = header.message_type() > NLMSG_OVERRUN;
        // Messages are aligned to four bytes (netlink(7)).
        let length = (header.length() as usize).next_multiple_of(4);
        match NetlinkMessage::<NetfilterMessage>::deserialize(rest) {
            Err(_) if is_entry => *unreadable += 1,
            Err(error) => return Err(error.into()),
            Ok(message) => match message.payload {
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                    ..
                }) => entry(&attributes),
                NetlinkPayload::Done(_) => return Ok(Progress::Done),
                NetlinkPayload::Error(answer) if answer.code.is_none() => {
                    return Ok(Progress::Done);
                }
                NetlinkPayload::Error(answer) => {
                    return Err(ConntrackError::Refused {
                        step: step(),
                        source: answer.to_io(),
                    });
                }
                _ => {}
            },
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(Progress::More)
}

/// Compare the protocol and, for IPv4, the destination: Linux compares IPv6
/// addresses the wrong way round here and would answer with all flows but those
/// (`ctnetlink_filter_match_tuple` in net/netfilter/nf_conntrack_netlink.c; seen
/// with 6.18).
///
/// The crate lacks this attribute and would send it without the flag that says it
/// is nested, which the kernel insists on.
fn filter(address: IpAddr) -> DefaultNla {
    let destination = match address {
        IpAddr::V4(_) => CTA_FILTER_F_CTA_IP_DST,
        IpAddr::V6(_) => 0,
    };
    let flags = CTA_FILTER_F_CTA_PROTO_NUM | destination;
    let flags = DefaultNla::new(CTA_FILTER_ORIG_FLAGS, flags.to_ne_bytes().to_vec());
    let mut value = vec![0; flags.buffer_len()];
    flags.emit(&mut value);
    DefaultNla::new(CTA_FILTER | NLA_F_NESTED, value)
}

/// An attribute that holds others, as it is on the wire.
fn plain(attribute: &ConntrackAttribute) -> DefaultNla {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    DefaultNla::new(attribute.kind() | NLA_F_NESTED, value)
}

/// The UDP flow that an entry stands for; `None` for another protocol, or a zone
/// other than 0.
fn flow(attributes: &[ConntrackAttribute]) -> Option<Flow> {
    let (mut original, mut reply, mut id) = (None, None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => original = tuple(parts),
            ConntrackAttribute::CtaTupleReply(parts) => reply = tuple(parts),
            ConntrackAttribute::Other(other) => match other.kind() & NLA_TYPE_MASK {
                CTA_ID => id = number(other),
                CTA_ZONE => return None,
                _ => {}
            },
            _ => {}
        }
    }
    Some(Flow {
        original: original?,
        reply: reply?,
        id: id?,
    })
}

fn tuple(parts: &[Tuple]) -> Option<FlowTuple> {
    let (mut from, mut to, mut from_port, mut to_port) = (None, None, None, None);
    let mut protocol = None;
    for part in parts {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => from = Some(*address),
                        IPTuple::DestinationAddress(address) => to = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(numbers) => {
                for number in numbers {
                    match number {
                        ProtoTuple::Protocol(number) => protocol = Some(*number),
                        ProtoTuple::SourcePort(port) => from_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => to_port = Some(*port),
                        _ => {}
                    }
                }
            }
            Tuple::Other(other) if other.kind() & NLA_TYPE_MASK == CTA_TUPLE_ZONE => return None,
            _ => {}
        }
    }
    (protocol == Some(Protocol::Udp)).then_some(())?;
    Some(FlowTuple {
        source: SocketAddr::new(from?, from_port?),
        destination: SocketAddr::new(to?, to_port?),
    })
}

fn number(attribute: &DefaultNla) -> Option<u32> {
    let mut bytes = [0; 4];
    (attribute.value_len() == bytes.len()).then(|| {
        attribute.emit_value(&mut bytes);
        u32::from_be_bytes(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of UDP as the kernel sends it, of a client at that port.
    fn message(port: u16) -> Vec<u8> {
        let tuple = |from: (&str, u16), to: (&str, u16)| {
            vec![
                Tuple::Ip(vec![
                    IPTuple::SourceAddress(from.0.parse().unwrap()),
                    IPTuple::DestinationAddress(to.0.parse().unwrap()),
                ]),
                Tuple::Proto(vec![
                    ProtoTuple::Protocol(Protocol::Udp),
                    ProtoTuple::SourcePort(from.1),
                    ProtoTuple::DestinationPort(to.1),
                ]),
            ]
        };
        let (client, node) = (("198.51.100.10", port), ("192.0.2.11", 53));
        let attributes = vec![
            ConntrackAttribute::CtaTupleOrig(tuple(client, node)),
            ConntrackAttribute::CtaTupleReply(tuple(node, client)),
            ConntrackAttribute::Other(DefaultNla::new(CTA_ID, 7_u32.to_be_bytes().to_vec())),
        ];
        let inner = ConntrackMessage::New(attributes);
        let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        let payload = NetlinkPayload::from(NetfilterMessage::new(header, inner));
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_passed_over_and_counted() {
        let mut broken = message(2);
        // The first attribute claims to be longer than its message.
        broken[20..22].copy_from_slice(&u16::MAX.to_ne_bytes());
        let datagram = [message(1), broken, message(3)].concat();
        let (mut ports, mut unreadable) = (Vec::new(), 0);
        let mut entry = |attributes: &[ConntrackAttribute]| {
            ports.extend(flow(attributes).map(|flow| flow.original.source.port()));
        };
        let step = || "list".to_owned();
        let progress = read(&datagram, &step, &mut entry, &mut unreadable).unwrap();
        assert_eq!((progress, unreadable), (Progress::More, 1));
        assert_eq!(ports, [1, 3]);
    }

    #[test]
    fn a_datagram_that_ends_early_is_an_error() {
        let whole = message(1);
        let step = || "list".to_owned();
        let cut = read(&whole[..10], &step, &mut |_| {}, &mut 0);
        assert!(matches!(cut, Err(ConntrackError::Read(_))), "{cut:?}");
    }
}
