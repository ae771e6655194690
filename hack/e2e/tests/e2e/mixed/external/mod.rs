//! Services that a load balancer outside the cluster serves.

mod harness;
