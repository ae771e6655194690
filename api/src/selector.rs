//! The `highwire.dev/node-selector` annotation.
//!
//! The grammar is that of `kubectl --selector`
//! (kubernetes.io "Labels and Selectors"): requirements joined by commas, each
//! `key`, `!key`, `key=value`, `key==value`, `key!=value`, `key in (a,b)` or
//! `key notin (a,b)`. Evaluation is left to [`kube::core::Selector`].

use std::{collections::BTreeMap, fmt, str::FromStr};

use kube::core::{Expression, Selector, SelectorExt};
use thiserror::Error;

/// Which nodes may serve a Service. The default selects every node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelector(Selector);

impl NodeSelector {
    /// Whether a node with these labels may serve.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }

    /// Whether every node matches.
    #[must_use]
    pub fn selects_all(&self) -> bool {
        self.0.selects_all()
    }
}

impl fmt::Display for NodeSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is no label selector.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// A requirement is empty, as between two commas.
    #[error("an empty requirement; write it like `pool=edge,zone in (a,b)`")]
    EmptyRequirement,
    /// A key breaks the rules for label keys.
    #[error(
        "{0:?} is not a label key ([prefix/]name, name up to 63 letters, digits, '-', '_', '.')"
    )]
    BadKey(String),
    /// A value breaks the rules for label values.
    #[error("{0:?} is not a label value (up to 63 letters, digits, '-', '_', '.')")]
    BadValue(String),
    /// Neither an operator nor a plain key.
    #[error(
        "cannot read {0:?}; write key, !key, key=value, key!=value, key in (a,b) or key notin (a,b)"
    )]
    BadRequirement(String),
}

impl FromStr for NodeSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        split_outside_parentheses(text)
            .into_iter()
            .map(parse_requirement)
            .collect::<Result<Selector, _>>()
            .map(Self)
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|c| {
        match c {
            '(' => inside = true,
            ')' => inside = false,
            _ => {}
        }
        c == ',' && !inside
    })
    .collect()
}

fn parse_requirement(requirement: &str) -> Result<Expression, SelectorError> {
    let requirement = requirement.trim();
    if requirement.is_empty() {
        return Err(SelectorError::EmptyRequirement);
    }
    if let Some(list) = requirement.strip_suffix(')') {
        let (head, list) = list
            .split_once('(')
            .ok_or_else(|| SelectorError::BadRequirement(requirement.to_owned()))?;
        let values = list.split(',').map(value).collect::<Result<_, _>>()?;
        return match head.split_whitespace().collect::<Vec<_>>()[..] {
            [name, "in"] => Ok(Expression::In(key(name)?, values)),
            [name, "notin"] => Ok(Expression::NotIn(key(name)?, values)),
            _ => Err(SelectorError::BadRequirement(requirement.to_owned())),
        };
    }
    if let Some((name, text)) = requirement.split_once("!=") {
        return Ok(Expression::NotEqual(key(name)?, value(text)?));
    }
    if let Some((name, text)) = requirement.split_once("==").or(requirement.split_once('=')) {
        return Ok(Expression::Equal(key(name)?, value(text)?));
    }
    if let Some(name) = requirement.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(key(name)?));
    }
    if requirement.contains(char::is_whitespace) || requirement.contains('(') {
        return Err(SelectorError::BadRequirement(requirement.to_owned()));
    }
    key(requirement).map(Expression::Exists)
}

fn key(text: &str) -> Result<String, SelectorError> {
    let text = text.trim();
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let prefix_ok = prefix.is_none_or(|p| {
        !p.is_empty()
            && p.len() <= 253
            && p.split('.').all(|part| is_name(part) && part.len() <= 63)
    });
    if prefix_ok && is_name(name) {
        Ok(text.to_owned())
    } else {
        Err(SelectorError::BadKey(text.to_owned()))
    }
}

fn value(text: &str) -> Result<String, SelectorError> {
    let text = text.trim();
    if text.is_empty() || is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(SelectorError::BadValue(text.to_owned()))
    }
}

/// A qualified name without its prefix: apimachinery `IsQualifiedName`.
fn is_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn matches_like_kubectl() {
        let edge = labels(&[("pool", "edge"), ("zone", "a")]);
        for (selector, matched) in [
            ("", true),
            ("pool=edge", true),
            ("pool == edge", true),
            ("pool!=edge", false),
            ("pool=edge,zone in (a,b)", true),
            ("zone in ( b , c )", false),
            ("zone notin (b)", true),
            ("missing notin (b)", true),
            ("pool", true),
            ("!pool", false),
            ("!missing", true),
            ("missing", false),
            ("example.com/gpu", false),
            ("pool=", false),
        ] {
            let parsed: NodeSelector = selector.parse().unwrap();
            assert_eq!(parsed.matches(&edge), matched, "{selector}");
        }
    }

    #[test]
    fn refuses_what_is_no_selector() {
        for bad in [
            "pool=edge,",
            "a b",
            "pool in a",
            "pool in (a",
            "in (a)",
            "-a=b",
            "a=b c",
            "/a",
            "a//b",
            "pool in (a) b",
            "a/b/c",
        ] {
            assert!(bad.parse::<NodeSelector>().is_err(), "{bad:?} was accepted");
        }
    }
}
