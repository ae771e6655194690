//! Namespaces, wiring, processes: a laboratory that knows nothing of Kubernetes.

pub mod http;
pub mod init;
pub mod netns;
mod process;
pub mod requirements;
pub mod state;
pub mod test_run;
pub mod unit;
pub mod wait;
pub mod wiring;
