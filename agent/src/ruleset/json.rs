//! Changes of elements as nft's JSON (libnftables-json(5)), and the table read back.

use std::{collections::BTreeMap, net::IpAddr};

use highwire_api::{Family, PortKey, Protocol, arbitration::Slot};
use ipnet::IpNet;
use nftables::{
    expr::{Expression, NamedExpression, Prefix},
    schema::{self, NfCmd, NfListObject, NfObject, Nftables},
    types::NfFamily,
};
use serde_json::Value;

use super::{Container, Element, Elements, Mapped, TABLE, elements::protocol_name};

/// The document that makes nft delete and add these elements.
#[must_use]
pub fn change(delete: &[Element], add: &[(Element, Option<Mapped>)]) -> Nftables<'static> {
    let deleted = delete.iter().map(|element| (*element, None));
    let commands = grouped(deleted)
        .map(NfCmd::Delete)
        .chain(grouped(add.iter().copied()).map(NfCmd::Add));
    let objects: Vec<_> = commands.map(NfObject::CmdObject).collect();
    Nftables {
        objects: objects.into(),
    }
}

/// One command per container, however many elements.
fn grouped(
    elements: impl Iterator<Item = (Element, Option<Mapped>)>,
) -> impl Iterator<Item = NfListObject<'static>> {
    let mut groups: BTreeMap<Container, Vec<Expression<'static>>> = BTreeMap::new();
    for (element, value) in elements {
        groups
            .entry(element.container())
            .or_default()
            .push(expression(element, value));
    }
    groups.into_iter().map(|(container, elements)| {
        NfListObject::Element(schema::Element {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: container.name().into(),
            elem: elements.into(),
        })
    })
}

fn expression(element: Element, value: Option<Mapped>) -> Expression<'static> {
    let port = |slot: Slot| {
        [
            Expression::String(protocol_name(slot.port.protocol).into()),
            Expression::Number(slot.port.port.get().into()),
        ]
    };
    let concat = |parts| Expression::Named(NamedExpression::Concat(parts));
    let key = match element {
        Element::Node(address) => Expression::String(address.to_string().into()),
        Element::Port(slot)
        | Element::ClusterIp(slot)
        | Element::ViaPort(slot)
        | Element::NodeAddress(slot)
        | Element::NodePort(slot)
        | Element::LocalPolicy(slot)
        | Element::Guarded(slot) => concat(port(slot).into()),
        Element::Allowed(slot, network) => {
            let [protocol, number] = port(slot);
            let network = Expression::Named(NamedExpression::Prefix(Prefix {
                addr: Box::new(Expression::String(network.network().to_string().into())),
                len: network.prefix_len().into(),
            }));
            concat(vec![protocol, number, network])
        }
    };
    let value = match value {
        None => return key,
        Some(Mapped::Address(address)) => Expression::String(address.to_string().into()),
        Some(Mapped::Port(port)) => Expression::Number(port.get().into()),
    };
    Expression::List(vec![key, value])
}

/// Reads the elements out of `nft -j list table inet highwire`. The crate's own
/// types cannot read nft's output (design §2.3), so this looks for the few
/// fields it needs. Elements that are none of ours are `None`.
#[must_use]
pub fn read_elements(listing: &Value) -> Option<Elements> {
    let mut elements = BTreeMap::new();
    for object in listing["nftables"].as_array()? {
        let Some(found) = object.get("set").or_else(|| object.get("map")) else {
            continue;
        };
        let container = Container::ALL
            .into_iter()
            .find(|kind| found["name"] == kind.name())?;
        for member in found["elem"].as_array().into_iter().flatten() {
            let (element, value) = read_element(container, member)?;
            elements.insert(element, value);
        }
    }
    Some(Elements(elements))
}

fn read_element(container: Container, member: &Value) -> Option<(Element, Option<Mapped>)> {
    let (key, value) = match (container.is_map(), member.as_array()) {
        (true, Some(pair)) => (pair.first()?, Some(read_mapped(pair.get(1)?)?)),
        _ => (member, None),
    };
    let element = match container {
        Container::Node(_) => Element::Node(key.as_str()?.parse().ok()?),
        Container::Ports(family) => Element::Port(read_slot(family, key)?),
        Container::ClusterIp(family) => Element::ClusterIp(read_slot(family, key)?),
        Container::ViaPort(family) => Element::ViaPort(read_slot(family, key)?),
        Container::NodeAddress(family) => Element::NodeAddress(read_slot(family, key)?),
        Container::NodePort(family) => Element::NodePort(read_slot(family, key)?),
        Container::LocalPolicy(family) => Element::LocalPolicy(read_slot(family, key)?),
        Container::Guarded(family) => Element::Guarded(read_slot(family, key)?),
        Container::Allowed(family) => {
            Element::Allowed(read_slot(family, key)?, read_network(&key["concat"][2])?)
        }
    };
    Some((element, value))
}

fn read_mapped(value: &Value) -> Option<Mapped> {
    match value.as_u64() {
        Some(port) => Some(Mapped::Port(u16::try_from(port).ok()?.try_into().ok()?)),
        None => Some(Mapped::Address(value.as_str()?.parse().ok()?)),
    }
}

fn read_slot(family: Family, key: &Value) -> Option<Slot> {
    let parts = key["concat"].as_array()?;
    let protocol = read_protocol(parts.first()?)?;
    let number = i32::try_from(parts.get(1)?.as_i64()?).ok()?;
    Some(Slot {
        family,
        port: PortKey::new(protocol, number)?,
    })
}

/// A protocol. nft prints its number where there is no /etc/protocols.
fn read_protocol(value: &Value) -> Option<Protocol> {
    match (value.as_str(), value.as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => Some(Protocol::Tcp),
        (Some("udp"), _) | (_, Some(17)) => Some(Protocol::Udp),
        (Some("sctp"), _) | (_, Some(132)) => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A network, or a single address, which nft prints without its prefix.
fn read_network(value: &Value) -> Option<IpNet> {
    match value.as_str() {
        Some(address) => Some(IpNet::from(address.parse::<IpAddr>().ok()?)),
        None => {
            let prefix = &value["prefix"];
            let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
            IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
        }
    }
}
