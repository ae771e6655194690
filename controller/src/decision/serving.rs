//! Whether a Service has addresses, or why not.

use std::time::Duration;

use highwire_api::{NodeSelector, Problem, external::Trouble};

use super::{
    addresses::{Limited, why_not_listed},
    eligibility::{Asked, Ineligible, Nodes},
};

/// How long a Service must be without an address before that is written.
const GRACE: Duration = Duration::from_secs(2);

/// The same while agents only have to catch up, as when a thousand Services are created at
/// once.
const CATCHING_UP: Duration = Duration::from_secs(15);

/// How long any other news is collected.
const COLLECT: Duration = Duration::from_millis(400);

/// Whether a Service has addresses, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It has some.
    Addresses,
    /// It has as many as it may have.
    Limited(Limited),
    /// No node serves it.
    NoAddress(NoAddress),
    /// No node serves it, only because ports are refused.
    PortsRefused,
    /// A box outside the cluster does not serve it, or not as it asks.
    External {
        /// The reason.
        trouble: Trouble,
        /// What to do.
        message: String,
        /// Whether it has addresses, for what it asked for before.
        has_addresses: bool,
    },
    /// What it asks for cannot be read.
    Invalid {
        /// What is wrong; never empty.
        problems: Vec<Problem>,
        /// Whether it has addresses, for what it asked for before.
        has_addresses: bool,
    },
    /// What it asks for is not done. Never empty.
    Unsupported(Vec<Problem>),
    /// It is not, or no longer, ours to serve.
    NotOurs,
}

/// Why no node is listed for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// No node has opted in.
    NoNodes,
    /// The node selector matches none that has.
    SelectorMatchesNone {
        /// The selector.
        selector: NodeSelector,
        /// How many nodes have opted in.
        opted_in: usize,
    },
    /// Each that matches has a reason of its own.
    NoReadyNodes {
        /// The nodes and their reasons.
        nodes: Vec<(String, Ineligible)>,
    },
}

impl Serving {
    /// Why a Service without addresses has none.
    #[must_use]
    pub fn without_address(asked: &Asked<'_>, nodes: &Nodes) -> Self {
        let selected = nodes.iter().filter(|(_, node)| asked.selects(node));
        let reasons: Vec<(String, Ineligible)> = selected
            .map(|(name, node)| (name.clone(), why_not_listed(asked, name, node)))
            .collect();
        if all_expected(&reasons, |reason| matches!(reason, Ineligible::Refused(_))) {
            return Self::PortsRefused;
        }
        Self::NoAddress(match (nodes.len(), reasons.is_empty()) {
            (0, _) => NoAddress::NoNodes,
            (opted_in, true) => NoAddress::SelectorMatchesNone {
                selector: asked.spec.node_selector.clone(),
                opted_in,
            },
            (_, false) => NoAddress::NoReadyNodes { nodes: reasons },
        })
    }

    /// How long it must last before it is written. What is written already should not stay
    /// wrong for longer than needed.
    #[must_use]
    pub fn delay(&self, is_first: bool) -> Duration {
        match self {
            Self::NoAddress(NoAddress::NoReadyNodes { nodes })
                if is_first
                    && all_expected(nodes, |reason| {
                        matches!(reason, Ineligible::CatchingUp | Ineligible::Refused(_))
                    }) =>
            {
                CATCHING_UP
            }
            Self::NoAddress(_)
            | Self::External {
                trouble: Trouble::Waiting | Trouble::NotListening,
                ..
            } => GRACE,
            _ => COLLECT,
        }
    }
}

/// Whether that is true of every node that could be expected to be listed.
fn all_expected(nodes: &[(String, Ineligible)], is: impl Fn(&Ineligible) -> bool) -> bool {
    let reasons = nodes.iter().map(|(_, reason)| reason);
    let mut expected = reasons
        .filter(|reason| !matches!(reason, Ineligible::Excluded | Ineligible::Departing(_)))
        .peekable();
    expected.peek().is_some() && expected.all(is)
}
