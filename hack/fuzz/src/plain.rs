//! The law about text that people see.

/// Whether a character may do something else to a terminal, a log or a page than stand there:
/// control characters, and those that change the direction of writing or cannot be seen.
#[must_use]
pub fn acts(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Panics if anything in a text acts.
pub fn assert_plain(what: &str, text: &str) {
    assert!(!text.contains(acts), "{what}: {text:?}");
}

/// The same for text of several lines.
pub fn assert_plain_lines(what: &str, text: &str) {
    text.split('\n').for_each(|line| assert_plain(what, line));
}
