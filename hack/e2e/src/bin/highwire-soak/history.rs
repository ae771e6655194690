//! A history: what happens to a cluster, as data.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::api_fault::{ApiClient, ApiFault};

/// Everything that happens, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct History {
    /// What it is there for, in words.
    #[serde(default)]
    pub(crate) about: String,
    /// What happens.
    pub(crate) operations: Vec<Operation>,
}

/// Names are numbers: Service 2, node 1. What cannot be done, such as deleting what is not
/// there, does nothing, so that any part of a history is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    /// Nothing more happens until the cluster has settled, and it is checked.
    Quiet,
    /// Creates the Service or edits it.
    PutService {
        slot: u8,
        shape: Shape,
    },
    DeleteService {
        slot: u8,
    },
    /// Another load balancer writes the Service's ingress: an address of its own or of that
    /// node.
    ForeignStatus {
        slot: u8,
        node: Option<u8>,
    },
    /// Starts the Pod anew.
    PutPod {
        slot: u8,
        node: u8,
        kind: PodKind,
    },
    ReadyPod {
        slot: u8,
        ready: bool,
    },
    DeletePod {
        slot: u8,
    },
    /// Labels the node, and starts or stops its agent as the DaemonSet would.
    EnableNode {
        node: u8,
        enabled: bool,
    },
    ExcludeNode {
        node: u8,
        excluded: bool,
    },
    PoolNode {
        node: u8,
        pool: Option<Pool>,
    },
    /// A program of the host listens, or ends.
    Listen {
        node: u8,
        at: Bind,
        protocol: Protocol,
        port: u16,
    },
    StopListening {
        node: u8,
        protocol: Protocol,
        port: u16,
    },
    /// Gives the node's interface a second address of each family, or takes it away.
    SecondAddress {
        node: u8,
        there: bool,
    },
    /// Names that address in the Node's status as its ExternalIP, or no longer.
    ExternalAddress {
        node: u8,
        named: bool,
    },
    /// SIGKILL, and a new process.
    KillAgent {
        node: u8,
    },
    /// SIGSTOP until [`Operation::ThawAgent`].
    FreezeAgent {
        node: u8,
    },
    ThawAgent {
        node: u8,
    },
    KillController {
        number: u8,
    },
    FreezeController {
        number: u8,
    },
    ThawController {
        number: u8,
    },
    /// SIGKILL of kube-proxy, and a new process.
    KillProxy {
        node: u8,
    },
    ProxyMode {
        node: u8,
        nftables: bool,
    },
    /// Of everybody's rules; kube-proxy, which would not notice for long, starts anew.
    FlushRuleset {
        node: u8,
    },
    /// Of our rules.
    DeleteTable {
        node: u8,
    },
    DeleteElement {
        node: u8,
        protocol: Protocol,
        port: u16,
    },
    AddElement {
        node: u8,
        protocol: Protocol,
        port: u16,
    },
    /// Pulls the nodes' cables for so long.
    CutOff {
        nodes: Vec<u8>,
        seconds: u8,
    },
    /// From now on this goes wrong with that program's requests about the resource, such as
    /// `services` or `services/status`; about all if empty.
    FailApi {
        client: ApiClient,
        fault: ApiFault,
        resource: String,
    },
    /// Everybody's network works again.
    MendApi,
    /// Nothing happens for so long.
    Pause {
        seconds: u8,
    },
}

impl Operation {
    /// Whether it goes on until something ends it.
    pub(crate) fn has_to_end(&self) -> bool {
        matches!(
            self,
            Self::FreezeAgent { .. } | Self::FreezeController { .. } | Self::FailApi { .. }
        )
    }

    /// What it does to the moment in which an API server fails somebody.
    pub(crate) fn disturbs(&self) -> Disturbance {
        match self {
            Self::Quiet
            | Self::MendApi
            | Self::Pause { .. }
            | Self::KillAgent { .. }
            | Self::KillController { .. }
            | Self::FreezeController { .. }
            | Self::ThawController { .. } => Disturbance::None,
            Self::FailApi { fault, .. } if fault.misleads() => Disturbance::ForAMoment,
            Self::FailApi { .. } => Disturbance::None,
            Self::KillProxy { .. }
            | Self::FlushRuleset { .. }
            | Self::DeleteTable { .. }
            | Self::DeleteElement { .. }
            | Self::AddElement { .. } => Disturbance::OfTheKernel,
            _ => Disturbance::Lasting,
        }
    }
}

/// Whether what was right at the last check has to be right although nobody can ask the API
/// server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disturbance {
    /// All the time.
    None,
    /// In a while.
    ForAMoment,
    /// In a while, if the agents are those of before: a new one knows only what the kernel
    /// has.
    OfTheKernel,
    /// Something else may be right now.
    Lasting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// What a listener is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Bind {
    All,
    V4,
    Loopback,
}

/// Two groups of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pool {
    A,
    B,
}

impl Pool {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PodKind {
    /// TCP 8080 and UDP 5353, `app=web`.
    Web,
    /// That TCP port of the node's network, `app=edge`.
    Edge(u16),
    /// That TCP port, which it claims as hostPort, `app=edge`.
    HostPort(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ServiceKind {
    LoadBalancer,
    ClusterIp,
    /// At that NodePort.
    NodePort(u16),
    /// With an externalIP that is this node's address.
    ExternalIp(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Families {
    V4,
    V6,
    Dual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Class {
    None,
    Ours,
    Others,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ranges {
    None,
    /// The client is in them, by IPv4.
    Client,
    /// The client is in them, by both families.
    ClientBoth,
    /// It is not.
    Others,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AddressType {
    None,
    ExternalIp,
    InternalIp,
}

/// What a Service asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) kind: ServiceKind,
    pub(crate) ports: Vec<(Protocol, u16)>,
    pub(crate) families: Families,
    /// Selects Pods `app=edge`, at the Service's own port, instead of `app=web`.
    pub(crate) edge: bool,
    pub(crate) external_local: bool,
    pub(crate) internal_local: bool,
    pub(crate) sticky: bool,
    pub(crate) node_ports: bool,
    pub(crate) not_ready: bool,
    pub(crate) class: Class,
    pub(crate) ranges: Ranges,
    pub(crate) pool: Option<Pool>,
    pub(crate) address_type: AddressType,
    pub(crate) max_addresses: Option<u8>,
    pub(crate) adopt: bool,
}

impl History {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no history", path.display()))
    }

    /// One operation a line.
    pub(crate) fn to_json(&self) -> Result<String> {
        let mut lines = Vec::new();
        for operation in &self.operations {
            lines.push(format!("    {}", serde_json::to_string(operation)?));
        }
        let about = serde_json::to_string(&self.about)?;
        let operations = lines.join(",\n");
        Ok(format!(
            "{{\n  \"about\": {about},\n  \"operations\": [\n{operations}\n  ]\n}}\n"
        ))
    }
}
