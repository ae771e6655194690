//! `/proc/net/sctp/eps`.

use highwire_agent::facts::listeners::parse_sctp;

use crate::plain::assert_plain;

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for listener in parse_sctp(&text) {
        assert_plain("a listener", &listener.to_string());
    }
}
