//! Transactions as nft's JSON (libnftables-json(5)), and the table read back.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use highwire_api::{Family, PortKey, Protocol, arbitration::Slot};
use ipnet::IpNet;
use nftables::{
    expr::{Expression, NamedExpression, Prefix},
    schema::{
        self, Counter, NfCmd, NfListObject, NfObject, Nftables, SetFlag, SetType, SetTypeValue,
        Table,
    },
    types::{NfChainPolicy, NfFamily},
};
use serde_json::Value;

use super::{
    Container, Element, Elements, Mapped, TABLE, Transaction,
    chains::{COUNTERS, Chain, chains},
    elements::protocol_name,
};

/// The document that makes nft carry the transaction out.
#[must_use]
pub fn render(transaction: &Transaction) -> Nftables<'static> {
    let mut commands = Vec::new();
    match transaction {
        Transaction::Replace(path, elements) => {
            commands.extend(remove());
            commands.push(NfCmd::Add(table()));
            commands.extend(COUNTERS.map(|name| NfCmd::Add(counter(name))));
            commands.extend(Container::of(*path).map(|kind| {
                let members = elements
                    .of_container(kind)
                    .map(|(e, value)| expression(e, value));
                NfCmd::Add(container(kind, members.collect()))
            }));
            let chains = chains(*path);
            commands.extend(chains.iter().map(|chain| NfCmd::Add(declaration(chain))));
            commands.extend(chains.into_iter().flat_map(rules).map(NfCmd::Add));
        }
        Transaction::Change { delete, add } => {
            let deleted = delete.iter().map(|element| (*element, None));
            commands.extend(grouped(deleted).map(NfCmd::Delete));
            commands.extend(grouped(add.iter().copied()).map(NfCmd::Add));
        }
        Transaction::Remove => commands.extend(remove()),
    }
    let objects: Vec<_> = commands.into_iter().map(NfObject::CmdObject).collect();
    Nftables {
        objects: objects.into(),
    }
}

fn table() -> NfListObject<'static> {
    NfListObject::Table(Table {
        family: NfFamily::INet,
        name: TABLE.into(),
        handle: None,
    })
}

/// Adding the table first makes deleting safe whether it exists or not
/// (`destroy` needs nft 1.0.8).
fn remove() -> [NfCmd<'static>; 2] {
    [NfCmd::Add(table()), NfCmd::Delete(table())]
}

fn counter(name: &'static str) -> NfListObject<'static> {
    NfListObject::Counter(Counter {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        ..Counter::default()
    })
}

fn container(container: Container, members: Vec<Expression<'static>>) -> NfListObject<'static> {
    let elem = (!members.is_empty()).then(|| Cow::from(members));
    let port =
        SetTypeValue::Concatenated(Cow::Borrowed(&[SetType::InetProto, SetType::InetService]));
    let address = |family| {
        SetTypeValue::Single(match family {
            Family::V4 => SetType::Ipv4Addr,
            Family::V6 => SetType::Ipv6Addr,
        })
    };
    let set = |set_type| {
        NfListObject::Set(Box::new(schema::Set {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: container.name().into(),
            set_type,
            flags: container.is_interval().then(|| [SetFlag::Interval].into()),
            elem: elem.clone(),
            ..schema::Set::default()
        }))
    };
    let map = |value| {
        NfListObject::Map(Box::new(schema::Map {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: container.name().into(),
            set_type: port.clone(),
            map: value,
            elem: elem.clone(),
            ..schema::Map::default()
        }))
    };
    match container {
        Container::Node(family) => set(address(family)),
        Container::Ports(_)
        | Container::ViaPort(_)
        | Container::LocalPolicy(_)
        | Container::Guarded(_) => set(port.clone()),
        Container::Allowed(Family::V4) => set(port_and(SetType::Ipv4Addr)),
        Container::Allowed(Family::V6) => set(port_and(SetType::Ipv6Addr)),
        Container::ClusterIp(family) | Container::NodeAddress(family) => map(address(family)),
        Container::NodePort(_) => map(SetTypeValue::Single(SetType::InetService)),
    }
}

fn port_and(address: SetType) -> SetTypeValue<'static> {
    let types = vec![SetType::InetProto, SetType::InetService, address];
    SetTypeValue::Concatenated(types.into())
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

fn declaration(chain: &Chain) -> NfListObject<'static> {
    NfListObject::Chain(schema::Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: chain.name.into(),
        _type: chain.base.map(|base| base.kind),
        hook: chain.base.map(|base| base.hook),
        prio: chain.base.map(|base| base.priority),
        policy: chain.base.map(|_| NfChainPolicy::Accept),
        ..schema::Chain::default()
    })
}

fn rules(chain: Chain) -> impl Iterator<Item = NfListObject<'static>> {
    let name = chain.name;
    chain.rules.into_iter().map(move |rule| {
        NfListObject::Rule(schema::Rule {
            family: NfFamily::INet,
            table: TABLE.into(),
            chain: name.into(),
            expr: rule.statements.into(),
            ..schema::Rule::default()
        })
    })
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
    let protocol = match parts.first()?.as_str()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let number = i32::try_from(parts.get(1)?.as_i64()?).ok()?;
    Some(Slot {
        family,
        port: PortKey::new(protocol, number)?,
    })
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
