//! All that is not about kube-proxy's mode: once, on a cluster of both modes.

mod adversity;
mod agent_policy;
mod conflicts;
mod crowd;
mod deploy;
mod ending;
mod external;
mod failing;
mod failover;
mod half_open;
mod harness;
mod host_conflicts;
mod host_firewalls;
mod hosts;
mod ipv6_only;
mod leases;
mod masquerade;
mod monitoring;
mod nodes;
mod ownership;
mod scale;
mod service_proxy;
mod udp_cost;
mod uninstall;
mod upgrade;
