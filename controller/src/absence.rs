//! Why a node is not advertised, and why none is, in words for the Service's owner.

use std::{fmt, time::Duration};

use highwire_api::{NodeSelector, names};

use crate::{index::node::Departure, ingress::enumerate};

/// How long a Service must be without an address before that is said.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// The same while agents only have to catch up.
const CATCHING_UP: Duration = Duration::from_secs(15);

/// Why a node does not serve a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// It does not exist, or lacks the label.
    NotOptedIn,
    /// It will soon be gone.
    Departing(Departure),
    /// It has the well-known label that keeps it out of load balancers.
    Excluded,
    /// The Node's `Ready` condition is not True.
    NodeNotReady,
    /// There is no LoadBalancerNode.
    NoReport,
    /// The agent says that it is not ready.
    AgentNotReady(String),
    /// The agent does not renew its Lease.
    Silent,
    /// The Service's node selector does not match.
    NotSelected,
    /// No ready endpoint, and the policy is Local.
    NoEndpoint,
    /// A port is taken.
    Conflict(String),
    /// The agent has not seen the Service as it is now.
    NotObserved,
    /// It has no address of the type and family the Service asks for.
    NoAddress,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOptedIn => return write!(f, "lacks the label {}=true", names::ENABLED_LABEL),
            Self::Departing(Departure::Deleted) => "is being deleted",
            Self::Departing(Departure::Marked) => {
                "is about to be deleted by the cluster autoscaler"
            }
            Self::Excluded => return write!(f, "has the label {}", names::EXCLUDE_LABEL),
            Self::NodeNotReady => "the Node is not Ready",
            Self::NoReport => "its agent has not reported; does its Pod run?",
            Self::AgentNotReady(reason) => reason,
            Self::Silent => "its agent does not renew its Lease; does its Pod run?",
            Self::NotSelected => "the node selector does not match",
            Self::NoEndpoint => "it has no ready endpoint, and externalTrafficPolicy is Local",
            Self::Conflict(text) => text,
            Self::NotObserved => "its agent has not caught up with the Service yet",
            Self::NoAddress => "it has no address of the type and IP family asked for",
        })
    }
}

/// Why no node at all is advertised for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// No node has opted in.
    NoOptedIn,
    /// The node selector matches none that has.
    SelectorMatchesNone {
        /// The selector.
        selector: NodeSelector,
        /// How many nodes have opted in.
        opted_in: usize,
    },
    /// Each that matches has a reason of its own.
    NoneReady {
        /// The nodes and their reasons.
        absent: Vec<(String, Absence)>,
    },
}

/// The kind of a [`Shortage`]: as long as it is the same, nothing new is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShortageKind {
    /// [`Shortage::NoOptedIn`].
    NoOptedIn,
    /// [`Shortage::SelectorMatchesNone`].
    SelectorMatchesNone,
    /// [`Shortage::NoneReady`].
    NoneReady,
}

impl ShortageKind {
    /// Its name in a condition.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoOptedIn => "NoNodes",
            Self::SelectorMatchesNone => "NodeSelectorMatchesNone",
            Self::NoneReady => "NoReadyNodes",
        }
    }
}

impl Shortage {
    /// Its kind, unless `PortConflict` tells all there is to tell.
    pub(crate) fn to_tell(&self) -> Option<ShortageKind> {
        (!self.is_all_conflicts()).then(|| self.kind())
    }

    /// How long it must last to be said: agents that only have not caught up yet, as when
    /// a thousand Services are created at once, get more time.
    pub(crate) fn grace(&self) -> Duration {
        let catching_up =
            |absence: &Absence| matches!(absence, Absence::NotObserved | Absence::Conflict(_));
        if self.is_all(catching_up) {
            CATCHING_UP
        } else {
            GRACE
        }
    }

    /// Whether taken ports are all there is to say.
    fn is_all_conflicts(&self) -> bool {
        self.is_all(|absence| matches!(absence, Absence::Conflict(_)))
    }

    /// Whether that is true of every node that somebody might expect to be advertised.
    fn is_all(&self, of: impl Fn(&Absence) -> bool) -> bool {
        let Self::NoneReady { absent } = self else {
            return false;
        };
        let mut expected = absent
            .iter()
            .map(|(_, absence)| absence)
            .filter(|absence| !matches!(absence, Absence::Excluded | Absence::Departing(_)))
            .peekable();
        expected.peek().is_some() && expected.all(of)
    }

    fn kind(&self) -> ShortageKind {
        match self {
            Self::NoOptedIn => ShortageKind::NoOptedIn,
            Self::SelectorMatchesNone { .. } => ShortageKind::SelectorMatchesNone,
            Self::NoneReady { .. } => ShortageKind::NoneReady,
        }
    }
}

/// How many nodes a message names with their reasons.
const NAMED: usize = 3;

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOptedIn => write!(
                f,
                "no node is labelled {label}=true; opt in with `kubectl label node NAME {label}=true`",
                label = names::ENABLED_LABEL
            ),
            Self::SelectorMatchesNone { selector, opted_in } => write!(
                f,
                "the annotation {} \"{selector}\" matches none of {opted_in} opted-in nodes",
                names::NODE_SELECTOR_ANNOTATION
            ),
            Self::NoneReady { absent } => {
                let reasons = absent
                    .iter()
                    .map(|(node, absence)| format!("{node} ({absence})"));
                write!(
                    f,
                    "none of {} nodes is ready: {}",
                    absent.len(),
                    enumerate(reasons, NAMED)
                )
            }
        }
    }
}
