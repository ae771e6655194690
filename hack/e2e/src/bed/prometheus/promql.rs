//! The queries of the dashboard, and which series a query asks for.
//!
//! A query for a series that does not exist is no error to Prometheus, it only finds nothing.
//! So tests must look for each selector on its own.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::handle::checkout;

/// Words that are followed by a list of labels.
const GROUPINGS: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];
/// Other words that are no metrics, even without a parenthesis behind them.
const WORDS: [&str; 20] = [
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "atan2",
    "inf",
    "nan",
    "sum",
    "min",
    "max",
    "avg",
    "count",
    "group",
    "stddev",
    "stdvar",
    "topk",
    "bottomk",
    "quantile",
    "count_values",
];

/// The queries of `deploy/monitoring/dashboard.json`, as Grafana sends them with all nodes
/// chosen, each with the title of its panel.
pub fn of_dashboard() -> Result<Vec<(String, String)>> {
    let path = checkout().join("deploy/monitoring/dashboard.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut queries = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().context("no title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().context("no expr")?;
            let query = query.replace("$__rate_interval", "1m");
            queries.push((title.to_owned(), query.replace("$node", ".*")));
        }
    }
    Ok(queries)
}

/// The selectors in a query: `up`, `up{job="x"}`. It must be valid.
pub fn selectors(query: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        rest = if first.is_ascii_alphabetic() || first == '_' {
            let (word, after) = split_word(rest);
            let after = after.trim_start();
            if GROUPINGS.contains(&word) {
                after_closing(after)
            } else if after.starts_with('(') || WORDS.contains(&word) {
                after
            } else if after.starts_with('{') {
                let end = after_closing(after);
                let braces = &after[..after.len() - end.len()];
                found.insert(format!("{word}{braces}"));
                end
            } else {
                found.insert(word.to_owned());
                after
            }
        } else if first == '"' || first == '[' {
            after_closing(rest)
        } else if first.is_ascii_digit() {
            split_word(rest).1
        } else {
            &rest[first.len_utf8()..]
        };
    }
    found
}

fn split_word(text: &str) -> (&str, &str) {
    let is_outside = |it: char| !(it.is_ascii_alphanumeric() || it == '_' || it == ':');
    text.split_at(text.find(is_outside).unwrap_or(text.len()))
}

/// What follows the bracket or quotation mark that closes the one at the start; the text
/// itself if there is none at the start.
fn after_closing(text: &str) -> &str {
    let close = match text.chars().next() {
        Some('(') => ')',
        Some('{') => '}',
        Some('[') => ']',
        Some('"') => '"',
        _ => return text,
    };
    let (mut is_quoted, mut is_escaped) = (close == '"', false);
    for (at, it) in text.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if it == '\\' {
            is_escaped = true;
        } else if it == close && (close == '"' || !is_quoted) {
            return &text[at + 1..];
        } else if it == '"' {
            is_quoted = !is_quoted;
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_series_is_a_selector() {
        for (query, wanted) in [
            ("up == 0", vec!["up"]),
            (
                "sum by (le) (rate(a_bucket{x=\"y\"}[5m]))",
                vec!["a_bucket{x=\"y\"}"],
            ),
            ("max(increase(a_total[1h])) > 1e3", vec!["a_total"]),
            (
                "a{b=\"}(\\\"c\"} and on (job, instance) last_over_time(d[1d])",
                vec!["a{b=\"}(\\\"c\"}", "d"],
            ),
            ("time() - a offset 5m", vec!["a"]),
            (
                "sum without (x) (a) / ignoring(y) group_left b:c",
                vec!["a", "b:c"],
            ),
            ("absent(a == 1) or vector(0)", vec!["a"]),
            (
                "label_replace(a, \"up\", \"down\", \"b\", \"c\")",
                vec!["a"],
            ),
        ] {
            let found = selectors(query);
            assert!(found.iter().eq(&wanted), "{query}: {found:?}");
        }
    }

    #[test]
    fn the_dashboard_has_queries_and_no_variable_is_left_in_them() {
        let queries = of_dashboard().unwrap();
        assert!(queries.len() > 40, "{}", queries.len());
        assert!(queries.iter().all(|(_, query)| !query.contains('$')));
    }
}
