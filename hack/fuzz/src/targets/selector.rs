//! The text of a node selector.

use highwire_api::NodeSelector;

use crate::plain::assert_plain;

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match text.parse::<NodeSelector>() {
        Err(error) => assert_plain("why it is none", &error.to_string()),
        Ok(selector) => {
            let written = selector.to_string();
            assert_plain("a selector", &written);
            let again: Result<NodeSelector, _> = written.parse();
            assert_eq!(again.as_ref(), Ok(&selector), "{written:?}");
        }
    }
}
