//! Which nodes refuse a Service a port, and why.

use std::collections::BTreeMap;

use super::eligibility::{Asked, Node, Nodes};
use crate::{facts::node::PortConflict, liveness::Liveness};

/// How many affected nodes are kept by name: one more than a text names, for "and 1 more"
/// is no shorter than the name.
const NAMED: usize = 3;

/// The nodes on which a port is refused for one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// The first ones by name.
    pub named: Vec<String>,
    /// How many there are.
    pub nodes: usize,
}

/// All conflicts of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortConflicts {
    /// Those that a live node reports which knows the Service as it is now.
    pub certain: BTreeMap<PortConflict, Affected>,
    /// Whether a node refuses it too that may be dead, or may not have seen the Service's
    /// last change.
    pub is_uncertain: bool,
}

impl PortConflicts {
    /// The conflicts on nodes that have opted in, match the node selector and whose agent
    /// may be alive, whether the Service would be advertised there or not.
    #[must_use]
    pub fn of(asked: &Asked<'_>, nodes: &Nodes) -> Self {
        let mut all = Self::default();
        for (name, node) in nodes {
            if let Some(conflicts) = node.refusal(asked.key)
                && node.facts.departure.is_none()
                && asked.selects(node)
            {
                all.add(name, node, conflicts, node.has_observed(asked.changed));
            }
        }
        all
    }

    fn add(&mut self, name: &str, node: &Node, conflicts: &[PortConflict], observed: bool) {
        match node.liveness {
            None | Some(Liveness::Silent) => {}
            Some(Liveness::Alive) if observed => {
                for conflict in conflicts {
                    let affected = self.certain.entry(conflict.clone()).or_default();
                    affected.nodes += 1;
                    if affected.named.len() < NAMED {
                        affected.named.push(name.to_owned());
                    }
                }
            }
            Some(_) => self.is_uncertain |= !conflicts.is_empty(),
        }
    }
}
