//! Our table as nft lists it in JSON.

use highwire_agent::table::{DataPath, Elements, Transaction, nft::Listed};
use serde_json::Value;

pub(super) fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let Ok(Listed {
        elements,
        structure,
    }) = Listed::read(text)
    else {
        return;
    };
    let Ok(mut listing) = serde_json::from_str::<Value>(text) else {
        return;
    };
    if let Some(elements) = elements {
        let none = Transaction::between(&elements, &elements);
        assert!(none.is_none(), "{none:?}");
        let change = Transaction::between(&elements, &Elements::default());
        let all = Transaction::Replace(DataPath::beside(None), elements);
        for script in change.iter().chain([&all]) {
            // It becomes a script for nft again.
            let text = script.to_string();
            let is_known = |c: char| c == '\n' || (' '..='~').contains(&c);
            assert!(text.chars().all(is_known), "{text:?}");
        }
    }
    let objects = listing.get_mut("nftables").and_then(Value::as_array_mut);
    for object in objects.into_iter().flatten() {
        for fields in object.as_object_mut().into_iter().flatten() {
            if let (name, Some(fields)) = (fields.0, fields.1.as_object_mut())
                && name != "metainfo"
            {
                fields.remove("elem");
            }
        }
    }
    // The second of two fields of one name is gone by now.
    let Ok(without) = Listed::read(&listing.to_string()) else {
        return;
    };
    assert_eq!(without.structure, structure, "elements count as rules");
}
