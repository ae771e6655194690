//! Namespaces, wiring, processes: a laboratory that knows nothing of Kubernetes.

pub mod http;
pub mod netns;
pub mod requirements;
pub mod state;
pub mod unit;
pub mod wait;
pub mod wiring;
