//! Text of others that people see: in a log, a status, a terminal, a page.

use std::fmt::Write as _;

/// The text without anything that cannot be printed: control characters and those that change
/// the direction of writing are escaped as Rust escapes them, such as `\u{202e}`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        if is_printable(character) {
            printable.push(character);
        } else {
            printable.extend(character.escape_debug());
        }
    }
    printable
}

/// The same for text of several lines.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(printable).collect();
    lines.join("\n")
}

/// The same JSON without anything that cannot be printed: within its strings as JSON escapes
/// it, such as `\u202e`. Line breaks stay, since in JSON they stand between values only.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut printable = String::with_capacity(json.len());
    for character in json.chars() {
        if character == '\n' || is_printable(character) {
            printable.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String cannot fail.
            let _ = write!(printable, "\\u{unit:04x}");
        }
    }
    printable
}

fn is_printable(character: char) -> bool {
    matches!(character, '\'' | '"' | '\\') || character.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_a_cursor_or_turns_the_line_around() {
        let hostile = "a\u{1b}[31m\u{202e}b\nc\u{200f}\0";
        let shown = printable(hostile);
        assert_eq!(shown, "a\\u{1b}[31m\\u{202e}b\\nc\\u{200f}\\0");
        let plain = "it's \"Ünïcode\" \\ 日本語";
        assert_eq!(printable(plain), plain);
    }

    #[test]
    fn json_is_the_same_value() {
        let hostile = "\u{9b}31m\u{202e}\u{7f}\u{e0001}\n\"\\Ü日";
        let json = serde_json::to_string_pretty(&[hostile]).unwrap();
        let shown = printable_json(&json);
        let escaped = "[\n  \"\\u009b31m\\u202e\\u007f\\udb40\\udc01\\n\\\"\\\\Ü日\"\n]";
        assert_eq!(shown, escaped);
        let again: Vec<String> = serde_json::from_str(&shown).unwrap();
        assert_eq!(again, [hostile]);
    }
}
