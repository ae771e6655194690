//! Deletes conntrack entries of UDP flows whose Pod is gone.
//!
//! UDP has no end that the kernel could see. So conntrack sends a client that keeps its
//! source port to the same Pod, dead or alive, and refuses a client that was refused
//! once, for as long as it keeps sending. kube-proxy
//! deletes such entries of ClusterIPs and NodePorts, but does not know ours, whose
//! original destination is `nodeIP:port`. So we delete them ([`conntrack`]) when
//! they are stale ([`stale`]), soon after anything changes that can make them so
//! ([`schedule`]).

mod cleaner;
pub mod conntrack;
pub mod flow;
pub mod frontends;
pub mod schedule;
pub mod stale;

pub use cleaner::Cleaner;
pub use frontends::{Behind, Frontends, taken_by};
