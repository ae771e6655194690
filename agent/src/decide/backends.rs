//! Targets that a nat rule of ours chooses from.

use std::{collections::BTreeSet, net::SocketAddr};

/// Where connections to a slot end, without a kube-proxy of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// Each gets as many connections as any other. They are of the slot's family, and there
    /// is at least one.
    pub targets: BTreeSet<SocketAddr>,
    /// Which of them a connection gets.
    pub choice: Choice,
    /// Whether a target sees the client's own address; else this node's. It has to send its
    /// answers by way of this node.
    pub keeps_client: bool,
}

/// How a connection's target is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// At random.
    Random,
    /// By the client's address: a client keeps its target while the targets stay the same
    /// (`sessionAffinity: ClientIP`).
    ByClient,
}
