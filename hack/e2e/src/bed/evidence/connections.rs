//! The last of the connections that conntrack knows. Pure.

use std::cmp::Reverse;

/// Entries that are printed.
const MOST: usize = 20;

/// The lines of `conntrack -L` that are about one of these ports. The newest come first, as far
/// as it can be seen: first those that are not closed, and of a state those that last longest.
/// Of many, only the first.
pub(super) fn newest<'a>(listed: impl Iterator<Item = &'a str>, ports: &[u16]) -> Vec<String> {
    let ports: Vec<String> = ports.iter().map(|port| format!("dport={port} ")).collect();
    let is_about = |entry: &&str| ports.iter().any(|port| entry.contains(port));
    let mut entries: Vec<&str> = listed.filter(is_about).collect();
    entries.sort_by_key(|entry| {
        let seconds = entry.split_whitespace().nth(2);
        let seconds: Option<u64> = seconds.and_then(|it| it.parse().ok());
        (entry.contains(" TIME_WAIT "), Reverse(seconds))
    });
    let mut lines: Vec<String> = entries.iter().take(MOST).map(ToString::to_string).collect();
    if entries.len() > MOST {
        lines.push(format!("… and {} more", entries.len() - MOST));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_ones_come_first_then_the_newest_and_there_are_not_too_many() {
        let closed = |seconds: usize, port: u16| {
            format!("tcp 6 {seconds} TIME_WAIT src=198.51.100.10 dst=192.0.2.11 dport={port} src=x")
        };
        let mut listed: Vec<String> = (1..=30).map(|seconds| closed(seconds, 80)).collect();
        listed.push(closed(119, 8080));
        listed
            .push("tcp 6 5 SYN_SENT src=198.51.100.10 dst=192.0.2.11 dport=80 [UNREPLIED]".into());
        let lines = newest(listed.iter().map(String::as_str), &[80]);
        assert!(lines[0].contains("SYN_SENT"), "{}", lines[0]);
        assert_eq!(lines[1], closed(30, 80));
        assert_eq!(lines.len(), MOST + 1);
        assert_eq!(lines[MOST], "… and 11 more");
    }
}
