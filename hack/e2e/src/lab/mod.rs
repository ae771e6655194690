//! Namespaces, wiring, processes: a laboratory that knows nothing of Kubernetes.

mod command;
pub mod http;
pub mod init;
pub mod machine;
pub mod netns;
pub mod place;
mod process;
pub mod requirements;
pub mod state;
pub mod test_run;
pub mod unit;
pub mod wait;
pub mod wiring;
