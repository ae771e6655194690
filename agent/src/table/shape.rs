//! What a table declares: by it an agent that starts knows whether the table that it finds can
//! be filled anew in place.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{DataPath, Set, TABLE, rules};

/// The sets, maps, counters and chains of a table. Two with the same names are taken for the
/// same, so **a set or map whose declaration changes gets another name**: kernels before 6.2
/// do not compare them (net/netfilter/nf_tables_api.c, `nft_set_is_same`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(BTreeSet<Declaration>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Declaration {
    /// A chain, and whether the kernel runs it by itself.
    Chain { name: String, has_hook: bool },
    /// Anything else that is not a rule: its kind, and its name.
    Named(String, String),
    /// Something that we never write, such as a flag of the table.
    Other(String),
}

impl Shape {
    /// That of our table of this path.
    #[must_use]
    pub fn of(path: DataPath) -> Self {
        let named = |kind: &str, name: String| Declaration::Named(kind.to_owned(), name);
        let counters = rules::COUNTERS.map(|name| named("counter", name.to_owned()));
        let sets = Set::of(path).map(|set| named(set.kind(), set.name()));
        let chains = rules::chain_names(path);
        let chains = chains.map(|(name, has_hook)| Declaration::Chain { name, has_hook });
        Self(counters.into_iter().chain(sets).chain(chains).collect())
    }

    /// That of a listing by nft (libnftables-json(5)): each object by its kind, with what is
    /// said of it.
    #[must_use]
    pub fn listed<'a>(
        objects: impl IntoIterator<Item = (&'a str, &'a Map<String, Value>)>,
    ) -> Self {
        let objects = objects.into_iter();
        Self(objects.filter_map(|it| declared(it.0, it.1)).collect())
    }
}

/// What an object declares; `None` for one that says nothing, or that is replaced anyway.
fn declared(kind: &str, fields: &Map<String, Value>) -> Option<Declaration> {
    let name = fields
        .get("name")
        .and_then(Value::as_str)
        .map(str::to_owned);
    let other = || Declaration::Other(format!("{kind} {}", Value::from(fields.clone())));
    match (kind, name) {
        ("metainfo" | "rule", _) => None,
        ("table", Some(name)) => {
            let plain = ["family", "name", "handle"];
            let is_plain = fields.keys().all(|field| plain.contains(&field.as_str()));
            (name != TABLE || !is_plain).then(other)
        }
        ("chain", Some(name)) => Some(Declaration::Chain {
            name,
            has_hook: fields.contains_key("hook"),
        }),
        (kind, Some(name)) => Some(Declaration::Named(kind.to_owned(), name)),
        (_, None) => Some(other()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::table::json::Listing;

    /// The shape of a listing of our table beside ipvs, with this table object, and one more.
    fn with(table: Value, more: Value) -> Shape {
        let mut objects = vec![json!({"metainfo": {"version": "1.0.6"}}), table];
        objects.extend(Shape::of(DataPath::Dnat).0.into_iter().map(|it| match it {
            Declaration::Named(kind, name) => json!({kind: {"name": name, "table": TABLE}}),
            Declaration::Chain {
                name,
                has_hook: true,
            } => {
                json!({"chain": {"name": name, "hook": "input", "prio": 0}})
            }
            Declaration::Chain {
                name,
                has_hook: false,
            } => json!({"chain": {"name": name}}),
            Declaration::Other(text) => panic!("{text}"),
        }));
        objects.push(more);
        let listing = json!({"nftables": objects}).to_string();
        let listing: Listing = serde_json::from_str(&listing).unwrap();
        listing.shape()
    }

    #[test]
    fn rules_and_what_nft_says_of_a_set_are_no_shape() {
        let table = json!({"table": {"family": "inet", "name": TABLE, "handle": 7}});
        let rule = json!({"rule": {"chain": "guard", "expr": ["drop"]}});
        assert_eq!(with(table, rule), Shape::of(DataPath::Dnat));
    }

    #[test]
    fn what_another_program_adds_is_one() {
        let table = json!({"table": {"family": "inet", "name": TABLE, "handle": 7}});
        for more in [
            json!({"set": {"name": "more", "type": "ipv4_addr"}}),
            json!({"chain": {"name": "more"}}),
            json!({"flowtable": {"name": "more"}}),
            json!({"strange": {}}),
        ] {
            assert_ne!(
                with(table.clone(), more.clone()),
                Shape::of(DataPath::Dnat),
                "{more}"
            );
        }
        let dormant = json!({"table": {"family": "inet", "name": TABLE, "flags": "dormant"}});
        let rule = json!({"rule": {"chain": "guard", "expr": ["drop"]}});
        assert_ne!(with(dormant, rule), Shape::of(DataPath::Dnat));
    }

    #[test]
    fn each_path_has_one_of_its_own() {
        let [first, dnat, direct] = DataPath::ALL.map(Shape::of);
        assert!(first != dnat && dnat != direct && first != direct);
    }
}
