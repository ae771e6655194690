//! The command line: raw flags, and what they mean once validated.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use clap::{ArgAction, Parser};
use highwire_api::{ClassPolicy, names::SYSTEM_NAMESPACE};
use highwire_runtime::{admin, logging::LogFormat};

use crate::decision::eligibility::Policy;

/// Writes the addresses of the nodes that serve a LoadBalancer Service into its status.
#[derive(Debug, Parser)]
#[command(name = "highwire-controller", version)]
pub struct Args {
    /// Who this is in the election of the leader; no two controllers may share it.
    /// In a Pod, its name.
    #[arg(long, env = "POD_NAME", value_parser = identity)]
    identity: String,
    /// The controller's Pod, by which it learns whether it goes for good when it is asked
    /// to stop. Without it, what it wrote stays.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// The namespace of that Pod and of the Leases.
    #[arg(long, env = "POD_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    namespace: String,
    /// Where /healthz, /readyz and /metrics are served, beside loopback (repeatable).
    #[arg(long, env = "POD_IP", value_name = "IP", value_delimiter = ',')]
    listen_address: Vec<IpAddr>,
    /// The port they are served on.
    #[arg(long, default_value_t = 9808)]
    port: u16,
    /// Whether Services without spec.loadBalancerClass are served. Give the agents
    /// the same flag.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    default_class: bool,
    /// Whether nodes with the label node.kubernetes.io/exclude-from-external-load-balancers
    /// are advertised all the same. kubeadm sets it on every control-plane node, also
    /// on the only node of a cluster.
    #[arg(long, default_value_t = false, action = ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true")]
    ignore_exclude_label: bool,
    /// How many seconds a Service's list of addresses is held that would become empty
    /// only because agents are silent; 0 for not at all. Programs that watch the status, such
    /// as ExternalDNS, act on an empty list at once.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    empty_hold: u32,
    /// How many nodes a Service lists that has no annotation highwire.dev/max-addresses,
    /// each with all of its addresses; 0 for all.
    #[arg(long, default_value_t = 64, value_name = "NODES")]
    max_addresses: u16,
    /// The format of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Where a controller is in the cluster.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace of its Pod and of the Leases.
    pub namespace: String,
    /// Its Pod, if it has one.
    pub pod: Option<String>,
}

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this is in the election of the leader.
    pub identity: String,
    /// Where it is in the cluster.
    pub place: Place,
    /// Where the admin endpoints are served.
    pub admin: BTreeSet<SocketAddr>,
    /// Whose Services are ours.
    pub class_policy: ClassPolicy,
    /// How nodes are advertised.
    pub policy: Policy,
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        Self {
            identity: args.identity,
            place: Place {
                namespace: args.namespace,
                pod: args.pod_name.filter(|name| !name.is_empty()),
            },
            admin: admin::sockets(&args.listen_address, args.port),
            class_policy: if args.default_class {
                ClassPolicy::DefaultAndOurs
            } else {
                ClassPolicy::OursOnly
            },
            policy: Policy {
                empty_hold: Duration::from_secs(args.empty_hold.into()),
                max_addresses: NonZeroU16::new(args.max_addresses),
                ignore_exclude_label: args.ignore_exclude_label,
            },
        }
    }
}

/// It becomes a field manager, which the API server wants short and printable.
fn identity(text: &str) -> Result<String, String> {
    let printable = text.chars().all(|c| c.is_ascii_graphic());
    if printable && (1..=100).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("write 1 to 100 printable ASCII characters, such as the Pod's name".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<Config, clap::Error> {
        Args::try_parse_from([&["highwire-controller"], flags].concat()).map(Config::from)
    }

    #[test]
    fn flags_become_policies() {
        let config = parse(&["--identity=c1", "--default-class=false"]).unwrap();
        assert_eq!(config.class_policy, ClassPolicy::OursOnly);
        assert!(config.admin.contains(&"127.0.0.1:9808".parse().unwrap()));
        let config = parse(&["--identity=c1"]).unwrap();
        assert_eq!(config.class_policy, ClassPolicy::DefaultAndOurs);
        assert!(!config.policy.ignore_exclude_label);
        for flag in ["--ignore-exclude-label", "--ignore-exclude-label=true"] {
            let config = parse(&["--identity=c1", flag]).unwrap();
            assert!(config.policy.ignore_exclude_label);
        }
    }

    #[test]
    fn wrong_flags_are_named_and_exit_with_2() {
        for (flags, named) in [
            (vec!["--identity="], "--identity"),
            (vec!["--identity=c 1"], "--identity"),
            (
                vec!["--identity=c1", "--listen-address=nowhere"],
                "--listen-address",
            ),
            (
                vec!["--identity=c1", "--default-class=maybe"],
                "--default-class",
            ),
            (vec!["--identity=c1", "--nonsense"], "--nonsense"),
        ] {
            let error = parse(&flags).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
