//! What the Highwire agent and controller must agree on.
//!
//! Everything here is a value or a pure function: the names users write
//! ([`names`]), the [`LoadBalancerNode`] resource, how a Service is read
//! ([`ServiceSpec`]), and who gets a port ([`arbitration`]). Both programs read
//! Services and compare resource versions with this code only, so they cannot disagree.

pub mod advertised;
pub mod arbitration;
pub mod clients;
pub mod cluster_ips;
pub mod external;
pub mod key;
pub mod names;
pub mod node;
pub mod ownership;
pub mod port;
pub mod problem;
pub mod selector;
pub mod service;
pub mod version;

pub use key::ServiceKey;
pub use node::{LoadBalancerNode, LoadBalancerNodeSpec, LoadBalancerNodeStatus};
pub use port::{Family, PortKey, Protocol};
pub use problem::Problem;
pub use selector::NodeSelector;
pub use service::{ClassPolicy, Interpretation, ServiceSpec};
pub use version::ResourceVersion;
