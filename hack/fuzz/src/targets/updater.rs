//! What an updater answers.

use highwire_controller::external::updater::message;

use crate::plain::assert_plain;

const SECRET: &str = "s3cr3t-token";

pub(super) fn run(input: &[u8]) {
    let said = message(input, &[SECRET.to_owned()]);
    assert_plain("an updater's answer", &said);
    assert!(said.chars().count() <= 200, "{said}");
    assert!(!said.contains(SECRET), "{said}");
}
