//! The command line.

use std::{ffi::OsString, net::IpAddr, path::PathBuf, time::Duration};

use clap::{
    ArgAction, Args, FromArgMatches, Subcommand,
    builder::{BoolValueParser, TypedValueParser},
};
use highwire_api::{ClassPolicy, names::SYSTEM_NAMESPACE};
use highwire_runtime::{explain::Output, logging::LogFormat};
use ipnet::IpNet;

use crate::{facts::service_proxy::Expected, port_ranges::PortRanges};

/// What `--reserved-ports` is by default: SSH; BGP; etcd; the API server; our own two;
/// kubelet, kube-proxy, kube-controller-manager and kube-scheduler (kubernetes.io "Ports
/// and Protocols").
const RESERVED_PORTS: &str = "22,179,2379-2380,6443,9807,9808,10248-10259";

/// What `--port` is by default.
const ADMIN_PORT: u16 = 9807;

/// What `--lease-duration` is by default: [`highwire_api::names::AGENT_LEASE_DURATION`].
const LEASE_SECONDS: &str = "12";

/// What the command line asks for.
#[derive(Debug)]
pub enum Cli {
    /// To run.
    Run(Config),
    /// To do something by hand.
    ByHand(Command),
}

impl Cli {
    /// Reads the command line, the program's name first.
    ///
    /// # Errors
    /// What is wrong with it, or what it asks to print.
    pub fn parse_from<T>(line: impl IntoIterator<Item = T>) -> Result<Self, clap::Error>
    where
        T: Into<OsString> + Clone,
    {
        let matches = command().try_get_matches_from(line)?;
        match matches.subcommand() {
            Some(_) => Command::from_arg_matches(&matches).map(Self::ByHand),
            None => Config::from_arg_matches(&matches).map(Self::Run),
        }
    }
}

/// The command line, as clap reads it.
#[must_use]
pub fn command() -> clap::Command {
    let command = clap::Command::new("highwire-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true)
        // The last of a flag counts, as it does with the programs of Kubernetes.
        .args_override_self(true);
    Command::augment_subcommands(Config::augment_args(command))
        .about("Programs nftables so that this node answers for LoadBalancer Services")
}

/// Things to do by hand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask the agent that runs on this host: every port that a Service asks for, who has it
    /// or why not, and what the kernel has of it. Changes nothing.
    Explain {
        /// The port of that agent's /explain, if it has another --port.
        #[arg(long, default_value_t = ADMIN_PORT)]
        port: u16,
        /// How to write the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove the nftables table of Highwire from this host.
    Cleanup {
        /// The nft program.
        #[arg(long, default_value = "nft")]
        nft: PathBuf,
    },
    /// Runs on a box outside the cluster, and sends what comes for its ports to the nodes.
    Edge(EdgeConfig),
}

/// How the agent runs.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// The name of this node, as in `kubectl get nodes`.
    #[arg(long, env = "NODE_NAME", value_parser = non_empty)]
    pub node_name: String,
    /// Where the agent is in the cluster.
    #[command(flatten)]
    pub place: Place,
    /// How long, in seconds, the agent's Lease is good: about so long a dead node is
    /// advertised. It is renewed after a third of it.
    #[arg(long, value_name = "SECONDS", default_value = LEASE_SECONDS,
          value_parser = clap::value_parser!(u64).range(3..=3600).map(Duration::from_secs))]
    pub lease_duration: Duration,
    /// Where /healthz, /readyz, /startz and /metrics are served, beside loopback (repeatable).
    /// /explain is answered to this host only.
    #[arg(long, env = "POD_IP", value_name = "IP", value_delimiter = ',')]
    pub listen_address: Vec<IpAddr>,
    /// The port they are served on.
    #[arg(long, default_value_t = ADMIN_PORT)]
    pub port: u16,
    /// Which Services this node serves, and where.
    #[command(flatten)]
    pub policy: Policy,
    /// Who picks the Pods of Services on this node.
    #[arg(long, value_enum, default_value_t)]
    pub service_proxy: Expected,
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

/// How the agent on a box outside the cluster runs.
#[derive(Clone, Debug, Args)]
pub struct EdgeConfig {
    /// The name of the box's ExternalLoadBalancer.
    #[arg(long, value_parser = non_empty)]
    pub name: String,
    /// The namespace of its Lease, which is Highwire's.
    #[arg(long, default_value = SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// How long, in seconds, its Lease is good. It is renewed after a third of it.
    #[arg(long, value_name = "SECONDS", default_value = LEASE_SECONDS,
          value_parser = clap::value_parser!(u64).range(3..=3600).map(Duration::from_secs))]
    pub lease_duration: Duration,
    /// Where /healthz, /readyz, /startz and /metrics are served, beside loopback (repeatable).
    /// /explain is answered to this host only.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub listen_address: Vec<IpAddr>,
    /// The port they are served on.
    #[arg(long, default_value_t = ADMIN_PORT)]
    pub port: u16,
    /// Serve only addresses in these networks (repeatable). Without it, those in the
    /// ExternalLoadBalancer's spec.addresses and those of interfaces with a default route.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub address_cidr: Vec<IpNet>,
    /// Ports that no Service gets: ports and ranges, joined by commas; empty for none.
    #[arg(long, value_name = "PORTS", default_value = "22,9807")]
    pub reserved_ports: PortRanges,
    /// How long a listener of the box keeps its port after it is gone, such as 60s or 2m; 0
    /// for not at all.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub listener_hold_down: Duration,
    /// Let the nodes see the clients' addresses. Their answers must come back through the
    /// box: it has to be the nodes' default gateway.
    #[arg(long)]
    pub no_masquerade: bool,
    /// The format of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// The nft program.
    #[arg(long, default_value = "nft")]
    pub nft: PathBuf,
    /// How long one run of it may take, such as 20s.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = some_time)]
    pub nft_timeout: Duration,
}

/// Where an agent is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Place {
    /// The agent's Pod, by which it learns whether it goes for good when it is asked to
    /// stop. Without it, everything stays unless the Node was opted out.
    #[arg(long = "pod-name", env = "POD_NAME")]
    pub pod: Option<String>,
    /// The namespace of that Pod and of the Leases.
    #[arg(long, env = "POD_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub namespace: String,
}

/// Which Services this node serves, and where.
#[derive(Clone, Debug, PartialEq, Eq, Default, Args)]
pub struct Policy {
    /// Whether Services without spec.loadBalancerClass are served.
    #[arg(long = "default-class", default_value = "true", action = ArgAction::Set,
          value_parser = BoolValueParser::new().map(class_policy))]
    pub class_policy: ClassPolicy,
    /// Serve exactly the host's addresses within this network (repeatable).
    /// By default: the Node's addresses, and global ones on interfaces with a
    /// default route.
    #[arg(long, value_name = "CIDR")]
    pub address_cidr: Vec<IpNet>,
    /// TCP ports that no Service gets, whether or not anybody listens there: ports and
    /// ranges, joined by commas; empty for none. Their owners rule the node or the cluster,
    /// and whoever can create Services must not get one while its owner restarts.
    #[arg(long, value_name = "PORTS", default_value = RESERVED_PORTS)]
    pub reserved_ports: PortRanges,
}

fn class_policy(default_class: bool) -> ClassPolicy {
    if default_class {
        ClassPolicy::DefaultAndOurs
    } else {
        ClassPolicy::OursOnly
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
        Err("must be a name, as `kubectl get` shows it".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use highwire_api::names::AGENT_LEASE_DURATION;

    use super::*;

    fn parse(flags: &[&str]) -> Config {
        let line = [&["highwire-agent", "--node-name=n1"], flags].concat();
        match Cli::parse_from(line).unwrap() {
            Cli::Run(config) => config,
            by_hand => panic!("{by_hand:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn flags_become_policies() {
        let policy = parse(&["--default-class=false", "--address-cidr=192.0.2.0/24"]).policy;
        assert_eq!(policy.class_policy, ClassPolicy::OursOnly);
        assert_eq!(policy.address_cidr, ["192.0.2.0/24".parse().unwrap()]);
    }

    #[test]
    fn what_nobody_chose_is_safe() {
        let config = parse(&[]);
        assert_eq!(config.policy.class_policy, ClassPolicy::DefaultAndOurs);
        assert_eq!(config.lease_duration, AGENT_LEASE_DURATION);
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
            let error = Cli::parse_from(arguments).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
