//! What our table is made of besides its elements, to tell whether another program
//! has changed it.

use serde_json::Value;

/// Declarations, chains and rules of our table, as one nft program lists them: two
/// listings by the same program are equal if and only if these are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure(String);

/// What differs between listings of the same table: elements, the kernel's numbering,
/// what counters have counted.
const VOLATILE: [&str; 5] = ["elem", "handle", "count", "packets", "bytes"];

impl Structure {
    /// The structure in `nft --json list table inet highwire`.
    #[must_use]
    pub fn of(listing: &Value) -> Self {
        let mut text = String::new();
        for object in listing["nftables"].as_array().into_iter().flatten() {
            for (kind, fields) in object.as_object().into_iter().flatten() {
                if kind == "metainfo" {
                    continue;
                }
                let mut fields = fields.clone();
                if let Some(fields) = fields.as_object_mut() {
                    fields.retain(|name, _| !VOLATILE.contains(&name.as_str()));
                }
                text.push_str(&format!("{kind} {fields}\n"));
            }
        }
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        let structure = |listing| Structure::of(&listing);
        let first = structure(listing("drop", &[], 1, 0));
        assert_eq!(first, structure(listing("drop", &["192.0.2.11"], 7, 9)));
        assert_ne!(first, structure(listing("accept", &[], 1, 0)));
        assert_ne!(first, structure(json!({"nftables": []})));
    }
}
