//! What this controller knows of Services and nodes, for people: `highwire-controller explain`
//! and the status page. Any replica answers, since followers watch everything too. Nothing is
//! computed until somebody asks.

mod gather;
mod route;
mod service;
mod text;

use std::collections::BTreeSet;

use highwire_api::{PortKey, ServiceKey};
use serde::Serialize;
use tokio::sync::oneshot;

pub use self::{
    gather::overview,
    route::{QUESTIONS, Questions, routes},
    service::explain as service,
    text::others,
};
use crate::facts::ingress::Host;

/// A question to the event loop.
#[derive(Debug)]
pub enum Question {
    /// About everything.
    Overview(oneshot::Sender<Overview>),
    /// About a Service. The answer is `None` if it is none of ours.
    Service(ServiceKey, oneshot::Sender<Option<ServiceExplanation>>),
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The controller that leads, if one does.
    pub leader: Option<String>,
    /// The watches whose first list is not complete yet: without them this is not all.
    pub incomplete: Vec<&'static str>,
    /// The Services that concern us, by name.
    pub services: Vec<ServiceLine>,
    /// The nodes that have opted in, by name.
    pub nodes: Vec<NodeLine>,
    /// How many nodes have not.
    pub other_nodes: usize,
    /// Who has which port.
    pub ports: Vec<PortLine>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceLine {
    /// Its name.
    pub service: ServiceKey,
    /// In a word.
    pub state: State,
    /// The ports that it asks for, such as `80/TCP`.
    pub ports: Vec<String>,
    /// Where its status says that it can be reached.
    pub addresses: Vec<String>,
    /// Why it is not served, or not everywhere, or by somebody else. Sentences.
    pub why: Vec<String>,
}

/// What becomes of a Service, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// It has addresses, and no node refuses it a port.
    Served,
    /// Some node refuses it a port.
    Conflict,
    /// It has no address.
    Pending,
    /// What it asks for cannot be read.
    Invalid,
    /// What it asks for is not done.
    Unsupported,
    /// Another load balancer serves it.
    Foreign,
    /// It is no longer ours, and its status still says something that we wrote.
    Abandoned,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Served,
        Self::Conflict,
        Self::Pending,
        Self::Invalid,
        Self::Unsupported,
        Self::Foreign,
        Self::Abandoned,
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Conflict => "conflict",
            Self::Pending => "pending",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Foreign => "foreign",
            Self::Abandoned => "abandoned",
        }
    }
}

/// A node that has opted in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLine {
    /// Its name.
    pub node: String,
    /// Whether Services can be advertised there.
    pub state: NodeState,
    /// Why not, or what its agent says.
    pub why: String,
    /// How kube-proxy works there, if known.
    pub proxy_mode: Option<&'static str>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// How many Services it forwards.
    pub services: u32,
    /// How many ports, over all Services.
    pub ports: u32,
    /// The ports that it refuses, such as `80/TCP of shop/web is held by socket 0.0.0.0:80`.
    pub refused: Vec<String>,
}

/// Whether Services can be advertised at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeState {
    /// They can.
    Ready,
    /// It is not known: it stays where it is listed.
    Unknown,
    /// They cannot.
    NotReady,
}

impl NodeState {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unknown => "unknown",
            Self::NotReady => "not ready",
        }
    }
}

/// A port, and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortLine {
    /// The port, such as `80/TCP`.
    pub port: String,
    /// The Services that have it, each with the number of addresses.
    pub held_by: Vec<(ServiceKey, usize)>,
    /// The Services that are refused it, each with the number of nodes that refuse.
    pub refused: Vec<(ServiceKey, usize)>,
}

/// Why each node is listed for a Service, or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExplanation {
    /// The Service.
    #[serde(flatten)]
    pub line: ServiceLine,
    /// The nodes that have opted in, by name; none if a box outside the cluster serves it.
    pub nodes: Vec<Verdict>,
    /// How many nodes have not.
    pub other_nodes: usize,
}

/// What becomes of a Service at a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The node.
    pub node: String,
    /// The addresses of it that are listed; empty if it is not.
    pub listed: Vec<String>,
    /// Why it is not listed, or not with all ports.
    pub why: Option<String>,
}

fn names(hosts: &BTreeSet<&Host>) -> Vec<String> {
    hosts.iter().map(ToString::to_string).collect()
}

fn port_names(ports: impl IntoIterator<Item = PortKey>) -> Vec<String> {
    ports.into_iter().map(|port| port.to_string()).collect()
}
