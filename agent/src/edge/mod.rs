//! `highwire-agent edge`: the agent on a box outside the cluster. It sends what comes for the
//! box's ports to the nodes, as the LoadBalancers of its ExternalLoadBalancer ask for.
//!
//! Nothing here arbitrates: the controller gives out the box's ports. Only what the host has
//! itself is refused. The rest is the agent's own: table, facts about the host, metrics.

pub mod app;
mod asked;
pub mod decide;
mod edge_loop;
mod explain;
mod report;
