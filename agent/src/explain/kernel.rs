//! What the kernel has, compared with what is wanted. Pure.

use std::collections::BTreeSet;

use super::{Explanation, InKernel, Port, State, Table, WantedTable};
use crate::table::{Element, nft::Listed};

/// How many elements are named of a table that differs.
const EXAMPLES: usize = 5;

impl WantedTable {
    /// Fills in the kernel's part of an answer: `found` is our table as it was read.
    pub(super) fn compare(&self, found: Option<&Listed>, explanation: &mut Explanation) {
        let (table, differing) = self.difference(found);
        let is_absent = table == Table::Absent;
        explanation.table = table;
        for row in &mut explanation.ports {
            if let State::Served { kernel, .. } = &mut row.state {
                *kernel = Some(if is_absent || differing.contains(&row.port) {
                    InKernel::Differs
                } else {
                    InKernel::AsWanted
                });
            }
        }
    }

    /// How the table differs, and the ports whose elements do.
    fn difference(&self, found: Option<&Listed>) -> (Table, BTreeSet<Port>) {
        let Some(found) = found else {
            return (Table::Absent, BTreeSet::new());
        };
        let Some(there) = &found.elements else {
            let message = "it has elements of a kind that this agent does not write".to_owned();
            return (Table::Unreadable { message }, BTreeSet::new());
        };
        let (wanted, there) = (&self.elements.0, &there.0);
        let missing: Vec<&Element> = wanted
            .iter()
            .filter(|(element, value)| there.get(element) != Some(value))
            .map(|(element, _)| element)
            .collect();
        let unwanted: Vec<&Element> = there
            .keys()
            .filter(|element| !wanted.contains_key(element))
            .collect();
        let rules = self.structure.as_ref();
        let rules = rules.map(|structure| *structure == found.structure);
        if missing.is_empty() && unwanted.is_empty() && rules != Some(false) {
            let elements = wanted.len();
            return (Table::AsWanted { elements }, BTreeSet::new());
        }
        let differing = missing.iter().chain(&unwanted);
        let differing = differing.filter_map(|element| element.key.port());
        let example = |what: &str, element: &Element| {
            format!("{what} {} {{ {} }}", element.set.name(), element.key)
        };
        let lacks = missing.iter().map(|element| example("lacks", element));
        let has = unwanted.iter().map(|element| example("has", element));
        let examples = lacks.chain(has).take(EXAMPLES).collect();
        let table = Table::Differs {
            missing: missing.len(),
            unwanted: unwanted.len(),
            examples,
            rules,
        };
        (table, differing.map(Port::from).collect())
    }
}
