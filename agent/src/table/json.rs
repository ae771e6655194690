//! The table as nft's JSON lists it (libnftables-json(5)).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use highwire_api::{PortKey, Protocol};
use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value as Json};

use super::{
    Shape, Structure,
    buckets::Bucket,
    sets::{Element, Elements, Key, Set, Value},
};

/// The answer to `nft --json list table inet highwire`, read one element at a time: as JSON in
/// memory, a large table takes fifty times what its elements take.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    #[serde(default)]
    nftables: Vec<Object>,
}

/// A table, chain, rule, counter, set or map.
#[derive(Debug)]
struct Object {
    kind: String,
    /// All about it but elements.
    fields: Map<String, Json>,
    /// Its elements; `None` if one is not of a kind that we write.
    members: Option<Vec<Member>>,
}

type Member = (Key, Option<Value>);

impl Listing {
    /// The elements; `None` if one is not of a kind that we write.
    pub(super) fn elements(&self) -> Option<Elements> {
        let mut elements = BTreeMap::new();
        let sets = self.nftables.iter();
        for found in sets.filter(|it| ["set", "map"].contains(&&*it.kind)) {
            let set = Set::named(found.fields.get("name")?.as_str()?)?;
            if set.is_memory() {
                continue;
            }
            for (key, value) in found.members.as_ref()? {
                if value.is_some() != set.is_map() {
                    return None;
                }
                elements.insert(Element { set, key: *key }, *value);
            }
        }
        Some(Elements(elements))
    }

    /// Everything else.
    pub(super) fn structure(&self) -> Structure {
        Structure::of(self.objects())
    }

    /// What is declared.
    pub(super) fn shape(&self) -> Shape {
        Shape::listed(self.objects())
    }

    fn objects(&self) -> impl Iterator<Item = (&str, &Map<String, Json>)> {
        let objects = self.nftables.iter();
        objects.map(|object| (&*object.kind, &object.fields))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(ObjectVisitor)
    }
}

/// Reads `{"KIND": {…}}`.
struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one field, named by its kind")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let missing = || A::Error::custom("an object without a kind");
        let kind: String = map.next_key()?.ok_or_else(missing)?;
        let Fields { fields, members } = map.next_value()?;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Object {
            kind,
            fields,
            members,
        })
    }
}

struct Fields {
    fields: Map<String, Json>,
    members: Option<Vec<Member>>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fields of an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let (mut fields, mut members) = (Map::new(), Some(Vec::new()));
        while let Some(name) = map.next_key::<String>()? {
            if name == "elem" {
                members = map.next_value::<Members>()?.0;
            } else {
                fields.insert(name, map.next_value()?);
            }
        }
        Ok(Fields { fields, members })
    }
}

/// The elements of a set or map; `None` if one is not of a kind that we write.
struct Members(Option<Vec<Member>>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_seq(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Members, A::Error> {
        let mut members = Some(Vec::new());
        while let Some(member) = seq.next_element::<Json>()? {
            members = members.zip(read_member(&member)).map(|(mut all, member)| {
                all.push(member);
                all
            });
        }
        Ok(Members(members))
    }
}

/// A key, or a list of a key and its value.
fn read_member(member: &Json) -> Option<Member> {
    match member.as_array() {
        Some(pair) => Some((read_key(pair.first()?)?, Some(read_value(pair.get(1)?)?))),
        None => Some((read_key(member)?, None)),
    }
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
