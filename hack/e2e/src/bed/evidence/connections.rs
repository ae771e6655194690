//! The last of the connections that conntrack knows, and what it did not let through. Pure.

use std::cmp::Reverse;

/// Columns of `/proc/net/stat/nf_conntrack` that count packets which were dropped, or had no
/// place in a connection (`net/netfilter/nf_conntrack_standalone.c`).
const TROUBLE: [&str; 4] = ["invalid", "insert_failed", "drop", "early_drop"];

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

/// What `/proc/net/stat/nf_conntrack` counts of each kind of trouble, over all processors.
pub(super) fn trouble(statistics: &str) -> String {
    let rows: Vec<Vec<&str>> = statistics
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let [names, processors @ ..] = rows.as_slice() else {
        return String::new();
    };
    let counts = TROUBLE.iter().filter_map(|name| {
        let column = names.iter().position(|it| it == name)?;
        let cells = processors.iter().filter_map(|row| row.get(column));
        let sum: u64 = cells
            .filter_map(|it| u64::from_str_radix(it, 16).ok())
            .sum();
        Some(format!("{name} {sum}"))
    });
    counts.collect::<Vec<_>>().join(", ")
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

    #[test]
    fn what_was_dropped_is_summed_over_the_processors() {
        let statistics = "entries  found invalid insert_failed drop early_drop\n\
            00000002  00000001 00000010 00000001 00000001 00000000\n\
            00000002  00000001 00000001 00000000 00000002 00000000\n";
        assert_eq!(
            trouble(statistics),
            "invalid 17, insert_failed 1, drop 3, early_drop 0"
        );
    }
}
