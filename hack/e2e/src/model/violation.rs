//! What a cluster does otherwise than it has to.

use std::fmt;
use std::net::SocketAddr;

use super::world::Protocol;

/// One thing that is not as it has to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A client outside got something else than it has to get.
    Traffic {
        /// The node asked.
        node: String,
        /// The address and port asked.
        at: SocketAddr,
        /// By which protocol.
        protocol: Protocol,
        /// What has to happen.
        expected: String,
        /// What happened.
        got: String,
    },
    /// A Service's status says something else than it has to.
    Status {
        /// `namespace/name`.
        service: String,
        /// What is wrong.
        what: String,
    },
    /// A LoadBalancerNode or a Lease is not as it has to be.
    Report {
        /// The node it is about.
        node: String,
        /// What is wrong.
        what: String,
    },
    /// The agent's `explain` is wrong, or the kernel's table is not what the agent wants.
    Explain {
        /// The node it is about.
        node: String,
        /// What is wrong.
        what: String,
    },
    /// The cluster could not be read.
    Unreadable {
        /// Why.
        what: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Traffic {
                node,
                at,
                protocol,
                expected,
                got,
            } => write!(f, "{node}: {protocol} {at}: expected {expected}; got {got}"),
            Self::Status { service, what } => write!(f, "Service {service}: {what}"),
            Self::Report { node, what } => write!(f, "report of {node}: {what}"),
            Self::Explain { node, what } => write!(f, "explain on {node}: {what}"),
            Self::Unreadable { what } => write!(f, "cannot read the cluster: {what}"),
        }
    }
}

/// All of them; empty if the cluster does what it has to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.0.iter();
        lines.try_for_each(|violation| writeln!(f, "  {violation}"))
    }
}

impl std::error::Error for Violations {}
