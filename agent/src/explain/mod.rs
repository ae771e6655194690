//! `highwire-agent explain`: what the agent that runs knows and decided about every port that
//! a Service asks for, beside what the kernel has. Nothing is computed until somebody asks.

mod kernel;
pub mod node;
pub mod route;
mod text;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use highwire_api::{PortKey, Protocol, ServiceKey, node::ProxyMode};
use serde::Serialize;

use crate::table::{Elements, Structure};

/// What the agent knows and decided, without the kernel's part.
#[derive(Clone, Debug)]
pub struct Known {
    /// Everything that can be said without the kernel.
    pub explanation: Explanation,
    /// What the kernel should have.
    pub wanted: WantedTable,
}

/// What our table should be.
#[derive(Clone, Debug)]
pub struct WantedTable {
    /// Its elements.
    pub elements: Elements,
    /// All the rest of it, if the agent has learned that.
    pub structure: Option<Structure>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Where the agent runs.
    #[serde(flatten)]
    pub place: Place,
    /// Whether it forwards.
    pub ready: bool,
    /// The reason of its condition `Ready`.
    pub reason: String,
    /// The message of that condition.
    pub message: String,
    /// How kube-proxy works on the node, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_mode: Option<ProxyMode>,
    /// The addresses at which Services answer.
    pub addresses: BTreeSet<IpAddr>,
    /// How many ports kube-proxy has yet to program before they are advertised.
    pub awaited_ports: usize,
    /// Our table in the kernel.
    pub table: Table,
    /// Every port that a Service of ours asks for, in order.
    pub ports: Vec<Row>,
    /// The Services that another load balancer serves.
    pub left_alone: Vec<LeftAlone>,
}

/// Where an agent runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// On this node.
    Node(String),
    /// On the box of this ExternalLoadBalancer.
    ExternalLoadBalancer(String),
}

/// A port that a Service asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The port.
    #[serde(flatten)]
    pub port: Port,
    /// The Service.
    pub service: ServiceKey,
    /// What becomes of it here.
    #[serde(flatten)]
    pub state: State,
}

/// A port of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Port {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

impl From<PortKey> for Port {
    fn from(key: PortKey) -> Self {
        Self {
            port: key.port.get(),
            protocol: key.protocol,
        }
    }
}

/// What becomes of a port that a Service asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(
    tag = "state",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum State {
    /// Connections to it are forwarded.
    Served {
        /// To these sockets, each of its IP family.
        goes_to: BTreeSet<SocketAddr>,
        /// What the kernel has of it; `None` if that could not be read.
        kernel: Option<InKernel>,
    },
    /// Somebody else has it, or it is refused for another reason.
    Refused {
        /// The reason, as in the report's conflicts.
        reason: &'static str,
        /// Who has it, or what to do.
        held_by: String,
    },
    /// The port is free, but this Service is not served here.
    NotServed {
        /// Why.
        why: String,
    },
}

/// What the kernel has of a served port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum InKernel {
    /// All that it should have.
    AsWanted,
    /// Something else.
    Differs,
}

/// Our table as the kernel has it, compared with what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Table {
    /// Nobody has compared them yet.
    NotCompared,
    /// It holds exactly what is wanted.
    AsWanted {
        /// So many elements.
        elements: usize,
    },
    /// There is none.
    Absent,
    /// It is another one.
    Differs {
        /// How many wanted elements it lacks.
        missing: usize,
        /// How many elements it has that nobody wants.
        unwanted: usize,
        /// The first of both, as nft writes them.
        examples: Vec<String>,
        /// Whether its chains and rules are as wanted; `None` if the agent does not know
        /// them yet.
        rules: Option<bool>,
    },
    /// It could not be read.
    Unreadable {
        /// Why.
        message: String,
    },
}

/// A Service that another load balancer serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftAlone {
    /// The Service.
    pub service: ServiceKey,
    /// Who serves it, and what hands it over.
    pub why: String,
}

#[cfg(test)]
mod tests;
