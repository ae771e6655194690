//! Our table as nft lists it in JSON.

use highwire_agent::table::{DataPath, Elements, Structure, Transaction, nft::Listed};
use serde_json::Value;

pub(super) fn run(input: &[u8]) {
    let Ok(mut listing) = serde_json::from_slice::<Value>(input) else {
        return;
    };
    let Listed {
        elements,
        structure,
    } = Listed::of(&listing);
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
    assert_eq!(
        Structure::of(&listing),
        structure,
        "elements count as rules"
    );
}
