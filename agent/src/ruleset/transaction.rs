//! Transactions: what one run of nft changes, all of it or nothing.

use std::fmt::{self, Write};

use super::{
    Container, DataPath, Element, Elements, Mapped, TABLE,
    chains::{COUNTERS, chains},
};

/// One atomic change of the kernel's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// Build the whole table anew, whatever was there.
    Replace(DataPath, Elements),
    /// Change only these elements of the table as it stands. Never empty.
    Change {
        /// Elements to delete, each of which must exist; sorted.
        delete: Vec<Element>,
        /// Elements to add; sorted. One whose value changes is deleted first.
        add: Vec<(Element, Option<Mapped>)>,
    },
    /// Take the table away, if it is there.
    Remove,
}

impl Transaction {
    /// What leads from `before` to `after` in a table of the same [`DataPath`];
    /// `None` if they are the same.
    #[must_use]
    pub fn between(before: &Elements, after: &Elements) -> Option<Self> {
        let differs = |element: &Element| before.0.get(element) != after.0.get(element);
        let delete: Vec<Element> = before
            .0
            .keys()
            .filter(|element| differs(element))
            .copied()
            .collect();
        let add: Vec<_> = after
            .0
            .iter()
            .filter(|(element, _)| differs(element))
            .map(|(element, value)| (*element, *value))
            .collect();
        let nothing = delete.is_empty() && add.is_empty();
        (!nothing).then_some(Self::Change { delete, add })
    }

    /// How many elements it adds and deletes; of a replacement, all it adds.
    #[must_use]
    pub fn cost(&self) -> usize {
        match self {
            Self::Replace(_, elements) => elements.0.len(),
            Self::Change { delete, add } => delete.len() + add.len(),
            Self::Remove => 0,
        }
    }

    /// The fixed word for it in metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Replace(..) => "replace",
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
            Self::Change { delete, add } => {
                for element in delete {
                    let container = element.container().name();
                    writeln!(f, "delete element inet {TABLE} {container} {{ {element} }}")?;
                }
                for (element, value) in add {
                    let container = element.container().name();
                    let element = ElementText(*element, *value);
                    writeln!(f, "add element inet {TABLE} {container} {{ {element} }}")?;
                }
                Ok(())
            }
            Self::Remove => writeln!(f, "table inet {TABLE}\ndelete table inet {TABLE}"),
        }
    }
}

struct ElementText(Element, Option<Mapped>);

impl fmt::Display for ElementText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        self.1.map_or(Ok(()), |value| write!(f, " : {value}"))
    }
}

fn write_table(f: &mut fmt::Formatter<'_>, path: DataPath, elements: &Elements) -> fmt::Result {
    writeln!(f, "table inet {TABLE} {{")?;
    for counter in COUNTERS {
        writeln!(f, "  counter {counter} {{ }}")?;
    }
    for container in Container::of(path) {
        let kind = if container.is_map() { "map" } else { "set" };
        writeln!(
            f,
            "  {kind} {} {{\n    typeof {}",
            container.name(),
            typeof_text(container)
        )?;
        if container.is_interval() {
            writeln!(f, "    flags interval")?;
        }
        let mut members = String::new();
        for (element, value) in elements.of_container(container) {
            writeln!(members, "      {},", ElementText(element, value))?;
        }
        if !members.is_empty() {
            writeln!(f, "    elements = {{\n{members}    }}")?;
        }
        writeln!(f, "  }}")?;
    }
    for chain in chains(path) {
        writeln!(f, "  chain {} {{", chain.name)?;
        if let Some(base) = chain.base {
            writeln!(f, "    {base}")?;
        }
        for rule in chain.rules {
            writeln!(f, "    {rule}")?;
        }
        writeln!(f, "  }}")?;
    }
    writeln!(f, "}}")
}

/// What the keys and values are, by where they stand in a packet. Never by `type`: a
/// set or map that nft 1.1.2 or later declares with a plain one makes nft 1.1.1 and
/// older, kube-proxy's maybe, crash when they list any table (kubernetes#136786).
fn typeof_text(container: Container) -> &'static str {
    use highwire_api::Family::{V4, V6};
    match container {
        Container::Node(V4) => "ip daddr",
        Container::Node(V6) => "ip6 daddr",
        Container::Ports(_)
        | Container::ViaPort(_)
        | Container::LocalPolicy(_)
        | Container::Guarded(_) => "meta l4proto . th dport",
        Container::NodePort(_) => "meta l4proto . th dport : th dport",
        Container::ClusterIp(V4) | Container::NodeAddress(V4) => {
            "meta l4proto . th dport : ip daddr"
        }
        Container::ClusterIp(V6) | Container::NodeAddress(V6) => {
            "meta l4proto . th dport : ip6 daddr"
        }
        Container::Allowed(V4) => "meta l4proto . th dport . ip saddr",
        Container::Allowed(V6) => "meta l4proto . th dport . ip6 saddr",
    }
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
