//! The command line: raw flags, and what they mean once validated.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgAction, Args, Parser, Subcommand};
use highwire_api::{
    ClassPolicy,
    names::{AGENT_LEASE_DURATION, SYSTEM_NAMESPACE},
};
use highwire_runtime::{admin, logging::LogFormat};
use ipnet::IpNet;

use crate::port_ranges::PortRanges;

/// What `--reserved-ports` is by default: SSH; BGP; etcd; the API server; our own two;
/// kubelet, kube-proxy, kube-controller-manager and kube-scheduler (kubernetes.io "Ports
/// and Protocols").
const RESERVED_PORTS: &str = "22,179,2379-2380,6443,9807,9808,10248-10259";

/// Programs nftables so that this node answers for LoadBalancer Services.
#[derive(Debug, Parser)]
#[command(name = "highwire-agent", version, subcommand_negates_reqs = true)]
// The last of a flag counts, as it does with the programs of Kubernetes.
#[command(args_conflicts_with_subcommands = true, args_override_self = true)]
pub struct Cli {
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: Option<RunArgs>,
}

/// Things to do by hand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show every claimed port of this node, who has it, and why not. Changes
    /// nothing. Run it on the node.
    Explain {
        /// The name of this node, as in `kubectl get nodes`.
        #[arg(long, env = "NODE_NAME", value_parser = non_empty)]
        node: String,
        /// Whether Services without spec.loadBalancerClass are served.
        #[arg(long, default_value_t = true, action = ArgAction::Set)]
        default_class: bool,
        /// The agent's --address-cidr, if it has any.
        #[arg(long, value_name = "CIDR")]
        address_cidr: Vec<IpNet>,
        /// The agent's --reserved-ports.
        #[arg(long, value_name = "PORTS", default_value = RESERVED_PORTS)]
        reserved_ports: PortRanges,
    },
    /// Remove the nftables table of Highwire from this host.
    Cleanup {
        /// The nft program.
        #[arg(long, default_value = "nft")]
        nft: PathBuf,
    },
}

/// The flags of the running agent.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The name of this node, as in `kubectl get nodes`.
    #[arg(long, env = "NODE_NAME", value_parser = non_empty)]
    pub node_name: String,
    /// The agent's Pod, by which it learns whether it goes for good when it is asked to
    /// stop. Without it, everything stays unless the Node was opted out.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// The namespace of that Pod and of the Leases.
    #[arg(long, env = "POD_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// How long, in seconds, the agent's Lease is good: about so long a dead node is
    /// advertised. It is renewed after a third of it.
    #[arg(long, value_name = "SECONDS", default_value_t = AGENT_LEASE_DURATION.as_secs(),
          value_parser = clap::value_parser!(u64).range(3..=3600))]
    pub lease_duration: u64,
    /// Where /healthz, /readyz and /metrics are served, beside loopback (repeatable).
    #[arg(long, env = "POD_IP", value_name = "IP", value_delimiter = ',')]
    pub listen_address: Vec<IpAddr>,
    /// The port they are served on.
    #[arg(long, default_value_t = 9807)]
    pub port: u16,
    /// Whether Services without spec.loadBalancerClass are served.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    pub default_class: bool,
    /// Serve exactly the host's addresses within this network (repeatable).
    /// By default: the Node's addresses, and global ones on interfaces with a
    /// default route.
    #[arg(long, value_name = "CIDR")]
    pub address_cidr: Vec<IpNet>,
    /// TCP ports that no Service gets, whether or not anybody listens there: ports and
    /// ranges, joined by commas; empty for none.
    #[arg(long, value_name = "PORTS", default_value = RESERVED_PORTS)]
    pub reserved_ports: PortRanges,
    /// How long a listener of the host keeps its port after it is gone, such as 60s or
    /// 2m; 0 for not at all.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub listener_hold_down: Duration,
    /// The format of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// The nft program.
    #[arg(long, default_value = "nft")]
    pub nft: PathBuf,
    /// How long one run of it may take, such as 20s. Raise it where the kernel needs longer
    /// to load its modules.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = some_time)]
    pub nft_timeout: Duration,
}

/// Where an agent is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The namespace of its Pod and its Lease.
    pub namespace: String,
    /// Its Pod, if it has one.
    pub pod: Option<String>,
}

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this node.
    pub node_name: String,
    /// Where the agent is in the cluster.
    pub place: Place,
    /// How long its Lease is good.
    pub lease_duration: Duration,
    /// Where the admin endpoints are served.
    pub admin: BTreeSet<SocketAddr>,
    /// Whose Services are ours.
    pub class_policy: ClassPolicy,
    /// What the admin has decided about the node's addresses and ports.
    pub policy: Policy,
    /// How long a listener that is gone keeps its port.
    pub listener_hold_down: Duration,
    /// The nft program.
    pub nft: PathBuf,
    /// How long one run of it may take.
    pub nft_timeout: Duration,
}

impl From<RunArgs> for Config {
    fn from(args: RunArgs) -> Self {
        Self {
            node_name: args.node_name,
            admin: admin::sockets(&args.listen_address, args.port),
            place: Place {
                namespace: args.namespace,
                pod: args.pod_name.filter(|name| !name.is_empty()),
            },
            lease_duration: Duration::from_secs(args.lease_duration),
            class_policy: class_policy(args.default_class),
            policy: Policy::new(args.address_cidr, args.reserved_ports),
            listener_hold_down: args.listener_hold_down,
            nft: args.nft,
            nft_timeout: args.nft_timeout,
        }
    }
}

/// What `--default-class` means.
#[must_use]
pub fn class_policy(default_class: bool) -> ClassPolicy {
    if default_class {
        ClassPolicy::DefaultAndOurs
    } else {
        ClassPolicy::OursOnly
    }
}

/// What the admin has decided about the node's addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// Which of the host's addresses Services answer at.
    pub addresses: AddressPolicy,
    /// TCP ports that no Service gets: their owners rule the node or the cluster, and
    /// whoever can create Services must not get one while its owner restarts.
    pub reserved_ports: PortRanges,
}

/// Which of the host's addresses Services answer at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressPolicy {
    /// The Node's addresses and those on interfaces with a default route.
    #[default]
    Default,
    /// Only addresses within these networks (`--address-cidr`). Never empty.
    Within(Vec<IpNet>),
}

impl Policy {
    /// What `--address-cidr` and `--reserved-ports` mean.
    #[must_use]
    pub fn new(address_cidr: Vec<IpNet>, reserved_ports: PortRanges) -> Self {
        let addresses = if address_cidr.is_empty() {
            AddressPolicy::Default
        } else {
            AddressPolicy::Within(address_cidr)
        };
        Self {
            addresses,
            reserved_ports,
        }
    }
}

/// A time such as `60s`, `1m 30s` or `0`.
fn time(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let read = text.parse::<jiff::SignedDuration>().ok();
    let positive = read.and_then(|time| Duration::try_from(time).ok());
    positive.ok_or_else(|| "write a time such as 60s or 2m, or 0".to_owned())
}

/// A time that is not 0.
fn some_time(text: &str) -> Result<Duration, String> {
    time(text)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "write a time such as 20s or 1m".to_owned())
}

fn non_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("must be the name of this node, as in `kubectl get nodes`".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_policies() {
        let cli = Cli::try_parse_from([
            "highwire-agent",
            "--node-name=n1",
            "--default-class=false",
            "--address-cidr=192.0.2.0/24",
        ])
        .unwrap();
        let config = Config::from(cli.run.unwrap());
        assert_eq!(config.class_policy, ClassPolicy::OursOnly);
        assert_eq!(
            config.policy.addresses,
            AddressPolicy::Within(vec!["192.0.2.0/24".parse().unwrap()])
        );
    }

    #[test]
    fn what_nobody_chose_is_safe() {
        let cli = Cli::try_parse_from(["highwire-agent", "--node-name=n1"]).unwrap();
        let config = Config::from(cli.run.unwrap());
        let reserved = &config.policy.reserved_ports;
        assert_eq!(reserved.to_string(), RESERVED_PORTS);
        for port in [
            22, 179, 2379, 2380, 6443, 9807, 9808, 10248, 10250, 10256, 10259,
        ] {
            assert!(reserved.contains(port), "{port}");
        }
        assert_eq!(config.listener_hold_down, Duration::from_secs(60));
        for (text, seconds) in [("0", 0), ("0s", 0), ("2m", 120), ("1m 30s", 90)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn wrong_flags_are_named() {
        for (flags, named) in [
            (vec!["--node-name="], "--node-name"),
            (
                vec!["--node-name=n1", "--address-cidr=192.0.2.0/33"],
                "--address-cidr",
            ),
            (
                vec!["--node-name=n1", "--listen-address=nowhere"],
                "--listen-address",
            ),
            (
                vec!["--node-name=n1", "--reserved-ports=ssh"],
                "--reserved-ports",
            ),
            (
                vec!["--node-name=n1", "--listener-hold-down=-1s"],
                "--listener-hold-down",
            ),
            (vec!["--node-name=n1", "--nft-timeout=0"], "--nft-timeout"),
            (vec!["--node-name=n1", "--nonsense"], "--nonsense"),
            (
                vec!["--node-name=n1", "--lease-duration=2"],
                "--lease-duration",
            ),
        ] {
            let arguments = [vec!["highwire-agent"], flags].concat();
            let error = Cli::try_parse_from(arguments).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
