//! A load balancer outside the cluster: the box, and what each Service gets on it.

pub mod load_balancer;
pub mod ports;
pub mod spec;
mod trouble;

pub use load_balancer::{
    BoxPort, LoadBalancer, LoadBalancerSpec, LoadBalancerStatus, SessionAffinity, Target,
};
pub use spec::{ExternalLoadBalancer, ExternalLoadBalancerSpec, ExternalLoadBalancerStatus};
pub use trouble::Trouble;

/// The type of the condition that a Service gets what it asks for on a box.
pub const ACCEPTED: &str = "Accepted";

/// The type of the condition that a box has what it was sent.
pub const READY: &str = "Ready";

/// The type of the condition by which the agent on a box says that it has a LoadBalancer.
pub const EDGE_READY: &str = "EdgeReady";
