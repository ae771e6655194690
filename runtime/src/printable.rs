//! Text of others that people see: in a log, a status, a terminal, a page.

/// The text without anything that cannot be printed: control characters and those that change
/// the direction of writing are escaped as Rust escapes them, such as `\u{202e}`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\'' | '"' | '\\' => printable.push(character),
            other => printable.extend(other.escape_debug()),
        }
    }
    printable
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
}
