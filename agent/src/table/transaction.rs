//! Transactions: what one run of nft changes, all of it or nothing.

use std::fmt;

use itertools::Itertools as _;

use super::{
    DataPath, Element, Elements, TABLE,
    rules::{COUNTERS, chains},
    sets::{Key, Set, Value},
};
use crate::decide::Plan;

/// How many clients the kernel remembers the targets of, per family. Further ones get theirs by
/// their addresses alone.
const MOST_REMEMBERED: u32 = 65_536;

/// One atomic change of the kernel's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// Build the whole table anew, whatever was there.
    Replace(DataPath, Elements),
    /// Give a table of the same [`Shape`](super::Shape) all its rules and elements anew. Its
    /// counters go on, and clients keep the targets that it remembers.
    ///
    /// No packet misses a look-up meanwhile. In a table that is replaced one may: it runs the
    /// rules that were there when it came, but a map that has been deleted since has no
    /// elements any more (net/netfilter/nf_tables_api.c, `nft_map_deactivate`).
    Refill(DataPath, Elements),
    /// Change only these elements of the table as it stands. Never empty.
    Change {
        /// Elements to delete, each of which must exist; sorted.
        delete: Vec<Element>,
        /// Elements to add; sorted. One whose value changes is deleted first.
        add: Vec<(Element, Option<Value>)>,
    },
    /// Take the table away, if it is there.
    Remove,
}

impl Transaction {
    /// What leads from `before` to `after` in a table of the same [`DataPath`];
    /// `None` if they are the same.
    #[must_use]
    pub fn between(before: &Elements, after: &Elements) -> Option<Self> {
        let (mut delete, mut add) = (Vec::new(), Vec::new());
        for pair in before
            .0
            .iter()
            .merge_join_by(&after.0, |(a, _), (b, _)| a.cmp(b))
        {
            let (old, new) = pair.left_and_right();
            if old == new {
                continue;
            }
            delete.extend(old.map(|(element, _)| *element));
            add.extend(new.map(|(element, value)| (*element, *value)));
        }
        let nothing = delete.is_empty() && add.is_empty();
        (!nothing).then_some(Self::Change { delete, add })
    }

    /// What leads from the table of one plan to that of another, of the same [`DataPath`];
    /// `None` if they are the same. It costs what the forwards do that differ, however many
    /// there are.
    #[must_use]
    pub fn from_plan(before: &Plan, after: &Plan, path: DataPath) -> Option<Self> {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let all = before.forwards.iter();
        for pair in all.merge_join_by(&after.forwards, |(a, _), (b, _)| a.cmp(b)) {
            let (was, is) = pair.left_and_right();
            if was != is {
                old.extend(was);
                new.extend(is);
            }
        }
        let old = Elements::of_some(before, &old, path);
        Self::between(&old, &Elements::of_some(after, &new, path))
    }

    /// How many elements it adds and deletes; of a whole table, all it adds.
    #[must_use]
    pub fn cost(&self) -> usize {
        match self {
            Self::Replace(_, elements) | Self::Refill(_, elements) => elements.0.len(),
            Self::Change { delete, add } => delete.len() + add.len(),
            Self::Remove => 0,
        }
    }

    /// The fixed word for it in metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Replace(..) => "replace",
            Self::Refill(..) => "refill",
            Self::Change { .. } => "change",
            Self::Remove => "remove",
        }
    }
}

/// The canonical text, a valid nft script: equal transactions have equal texts.
impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace(path, elements) => {
                // Adding it first makes deleting safe whether it exists or not.
                writeln!(f, "table inet {TABLE}\ndelete table inet {TABLE}")?;
                write_table(f, *path, elements)
            }
            Self::Refill(path, elements) => {
                writeln!(f, "flush table inet {TABLE}")?;
                for set in Set::of(*path).filter(|set| !set.is_memory()) {
                    writeln!(f, "flush {} inet {TABLE} {}", set.kind(), set.name())?;
                }
                write_table(f, *path, elements)
            }
            Self::Change { delete, add } => {
                for Element { set, key } in delete {
                    let name = set.name();
                    writeln!(f, "delete element inet {TABLE} {name} {{ {key} }}")?;
                }
                for (Element { set, key }, value) in add {
                    let (name, element) = (set.name(), text(*key, *value));
                    writeln!(f, "add element inet {TABLE} {name} {{ {element} }}")?;
                }
                Ok(())
            }
            Self::Remove => writeln!(f, "table inet {TABLE}\ndelete table inet {TABLE}"),
        }
    }
}

fn text(key: Key, value: Option<Value>) -> String {
    let value = value.map(|value| format!(" : {value}"));
    format!("{key}{}", value.unwrap_or_default())
}

fn write_table(f: &mut fmt::Formatter<'_>, path: DataPath, elements: &Elements) -> fmt::Result {
    writeln!(f, "table inet {TABLE} {{")?;
    for counter in COUNTERS {
        writeln!(f, "  counter {counter} {{ }}")?;
    }
    for set in Set::of(path) {
        let (kind, name, typeof_text) = (set.kind(), set.name(), set.typeof_text());
        writeln!(f, "  {kind} {name} {{\n    typeof {typeof_text}")?;
        if set.is_interval() {
            writeln!(f, "    flags interval")?;
        }
        if set.is_memory() {
            writeln!(f, "    flags dynamic,timeout\n    size {MOST_REMEMBERED}")?;
        }
        let mut members = elements.of_set(set).peekable();
        if members.peek().is_some() {
            writeln!(f, "    elements = {{")?;
            for (key, value) in members {
                writeln!(f, "      {},", text(key, value))?;
            }
            writeln!(f, "    }}")?;
        }
        writeln!(f, "  }}")?;
    }
    for line in chains(path) {
        writeln!(f, "  {line}")?;
    }
    writeln!(f, "}}")
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
