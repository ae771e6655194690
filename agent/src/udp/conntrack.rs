//! Reading and deleting conntrack entries by ctnetlink (NETLINK_NETFILTER,
//! subsystem conntrack; kernel include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, Nla,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, ConntrackMessageType, IPTuple, ProtoTuple, Protocol,
        Tuple,
    },
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use thiserror::Error;

use super::flow::{Flow, Tuple as FlowTuple};
use crate::netlink::{NetlinkError, ask};

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

/// Why flows cannot be read or deleted.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// The kernel did not do what it was asked for.
    #[error(
        "the kernel's conntrack was asked to {step}: {source}; does the agent have CAP_NET_ADMIN, \
         and is nf_conntrack_netlink in this kernel?"
    )]
    Failed {
        /// What it was asked for.
        step: String,
        /// Why it did not.
        source: NetlinkError,
    },
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
        let socket = Socket::new(NETLINK_NETFILTER);
        let socket = socket.map_err(|error| failed("open a socket", error.into()))?;
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
        let request = about(address, request);
        let listed = ask(&self.socket, NLM_F_DUMP, request, |message| {
            // The kernel may list more than that; before 5.8, everything.
            let of_address = flow(&message).filter(|f| f.original.destination.ip() == address);
            flows.extend(of_address.filter(|flow| wanted(flow)));
        });
        let step = || format!("list the UDP flows to {address}");
        let unreadable = listed.map_err(|error| failed(&step(), error))?;
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
        let request = about(destination.ip(), request);
        match ask(&self.socket, NLM_F_ACK, request, |_| {}) {
            Ok(_) => Ok(true),
            Err(NetlinkError::Refused(error))
                if error.raw_os_error() == Some(Errno::ENOENT as i32) =>
            {
                Ok(false)
            }
            Err(error) => Err(failed(&format!("delete the flow {flow}"), error)),
        }
    }
}

fn failed(step: &str, source: NetlinkError) -> ConntrackError {
    let step = step.to_owned();
    ConntrackError::Failed { step, source }
}

fn about(address: IpAddr, request: ConntrackMessage) -> NetfilterMessage {
    let family = match address {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request)
}

/// Compare the protocol and, for IPv4, the destination: Linux compares IPv6
/// addresses inverted here and would answer with all flows but those
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
#[must_use]
pub fn flow(message: &NetfilterMessage) -> Option<Flow> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &message.inner else {
        return None;
    };
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
