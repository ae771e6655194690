//! Services that a load balancer outside the cluster serves.

mod edge;
pub(crate) mod front;
mod harness;
mod objects;
mod serving;
mod several;
mod trouble;
