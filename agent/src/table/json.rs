//! The table as nft's JSON lists it (libnftables-json(5)).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use highwire_api::{PortKey, Protocol};
use ipnet::IpNet;
use serde_json::Value as Json;

use super::{
    buckets::Bucket,
    sets::{Element, Elements, Key, Set, Value},
};

/// Reads the elements out of `nft -j list table inet highwire`: searches it for the few
/// fields it needs. `None` if an element is not of a kind that we write.
#[must_use]
pub(super) fn read_elements(listing: &Json) -> Option<Elements> {
    let mut elements = BTreeMap::new();
    for object in listing["nftables"].as_array()? {
        let Some(found) = object.get("set").or_else(|| object.get("map")) else {
            continue;
        };
        let set = Set::named(found["name"].as_str()?)?;
        if set.is_memory() {
            continue;
        }
        for member in found["elem"].as_array().into_iter().flatten() {
            let (key, value) = match (set.is_map(), member.as_array()) {
                (true, Some(pair)) => (pair.first()?, Some(read_value(pair.get(1)?)?)),
                _ => (member, None),
            };
            let key = read_key(key)?;
            elements.insert(Element { set, key }, value);
        }
    }
    Some(Elements(elements))
}

fn read_key(key: &Json) -> Option<Key> {
    let Some(parts) = key["concat"].as_array() else {
        return Some(Key::Address(key.as_str()?.parse().ok()?));
    };
    if let Some(address) = parts.first().and_then(Json::as_str)
        && let Ok(address) = address.parse()
    {
        let to_itself = parts.len() == 2 && parts[1] == parts[0];
        return to_itself.then_some(Key::ToItself(address));
    }
    let number = i32::try_from(parts.get(1)?.as_i64()?).ok()?;
    let port = PortKey::new(read_protocol(parts.first()?)?, number)?;
    if let Some(target) = parts.get(3) {
        let address = parts.get(2)?.as_str()?.parse().ok()?;
        let target = u16::try_from(target.as_u64()?).ok()?;
        return Some(Key::PortAndTarget(port, SocketAddr::new(address, target)));
    }
    match parts.get(2) {
        None => Some(Key::Port(port)),
        Some(part) => Some(match part.as_u64() {
            Some(number) => Key::PortAndBucket(port, Bucket::new(number)?),
            None => Key::PortAndNetwork(port, read_network(part)?),
        }),
    }
}

fn read_value(value: &Json) -> Option<Value> {
    if let Some(parts) = value["concat"].as_array() {
        let address = parts.first()?.as_str()?.parse().ok()?;
        let port = parts.get(1)?.as_u64()?.try_into().ok()?;
        return Some(Value::AddressAndPort(address, port));
    }
    match value.as_u64() {
        Some(port) => Some(Value::Port(u16::try_from(port).ok()?.try_into().ok()?)),
        None => Some(Value::Address(value.as_str()?.parse().ok()?)),
    }
}

/// A protocol. nft prints its number where there is no /etc/protocols.
fn read_protocol(value: &Json) -> Option<Protocol> {
    match (value.as_str(), value.as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => Some(Protocol::Tcp),
        (Some("udp"), _) | (_, Some(17)) => Some(Protocol::Udp),
        (Some("sctp"), _) | (_, Some(132)) => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A network, or a single address, which nft prints without its prefix.
fn read_network(value: &Json) -> Option<IpNet> {
    match value.as_str() {
        Some(address) => Some(IpNet::from(address.parse::<IpAddr>().ok()?)),
        None => {
            let prefix = &value["prefix"];
            let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
            IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
        }
    }
}
