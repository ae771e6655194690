//! What our table is made of besides its elements, to tell whether another program
//! has changed it.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Declarations, chains and rules of our table, as one nft program lists them: two
/// listings by the same program are equal if and only if these are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure(String);

/// What differs between listings of the same table besides elements: the kernel's numbering,
/// what counters have counted.
const VOLATILE: [&str; 4] = ["handle", "count", "packets", "bytes"];

impl Structure {
    /// The structure in `nft --json list table inet highwire`: each object by its kind, with
    /// what is said of it.
    #[must_use]
    pub fn of<'a>(objects: impl IntoIterator<Item = (&'a str, &'a Map<String, Value>)>) -> Self {
        let mut text = String::new();
        for (kind, fields) in objects {
            if kind == "metainfo" {
                continue;
            }
            let mut fields = fields.clone();
            fields.retain(|name, _| !VOLATILE.contains(&name.as_str()));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{kind} {}", Value::Object(fields));
        }
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::table::nft::Listed;

    fn listing(rule: &str, elements: &[&str], handle: u32, packets: u32) -> Value {
        json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "highwire", "handle": handle}},
            {"counter": {"name": "denied", "handle": handle, "packets": packets, "bytes": packets}},
            {"set": {"name": "node4", "type": "ipv4_addr", "handle": handle, "elem": elements}},
            {"rule": {"chain": "guard", "handle": handle, "expr": [rule]}},
        ]})
    }

    #[test]
    fn elements_handles_and_counts_are_no_structure() {
        let structure = |listing: Value| Listed::read(&listing.to_string()).unwrap().structure;
        let first = structure(listing("drop", &[], 1, 0));
        assert_eq!(first, structure(listing("drop", &["192.0.2.11"], 7, 9)));
        assert_ne!(first, structure(listing("accept", &[], 1, 0)));
        assert_ne!(first, structure(json!({"nftables": []})));
    }
}
