//! The command line.

use std::{ffi::OsString, net::IpAddr, num::ParseIntError, time::Duration};

use clap::{
    ArgAction, Args, CommandFactory, FromArgMatches, Parser,
    builder::{BoolValueParser, TypedValueParser},
};
use highwire_api::{ClassPolicy, ServiceKey, names::SYSTEM_NAMESPACE};
use highwire_runtime::{explain::Output, logging::LogFormat};

/// What the command line asks for.
#[derive(Debug)]
pub enum Cli {
    /// To run.
    Run(Box<Config>),
    /// To ask the controller that runs here.
    Explain(Explain),
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
            Some((_, explain)) => Explain::from_arg_matches(explain).map(Self::Explain),
            None => Config::from_arg_matches(&matches).map(|config| Self::Run(Box::new(config))),
        }
    }
}

/// The command line, as clap reads it.
#[must_use]
pub fn command() -> clap::Command {
    Config::command()
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true)
        .subcommand(Explain::augment_args(clap::Command::new("explain")).about(EXPLAIN))
}

const EXPLAIN: &str = "Ask the controller that runs in this Pod, leading or not: what every \
    Service got, or for one Service why each node is listed or not. Changes nothing";

/// What to explain.
#[derive(Clone, Debug, Args)]
pub struct Explain {
    /// The Service, for its nodes; without it, all Services and nodes.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = service_name)]
    pub service: Option<String>,
    /// The port of that controller's /explain, if it has another --port.
    #[arg(long, default_value_t = ADMIN_PORT)]
    pub port: u16,
    /// How to write the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Names in the form that the API server takes (RFC 1123), so that a URL takes them too.
fn service_name(text: &str) -> Result<String, String> {
    let is_known = |c: char| c.is_ascii_alphanumeric() || "-./".contains(c);
    let key = text.parse::<ServiceKey>()?;
    if text.chars().all(is_known) {
        Ok(key.to_string())
    } else {
        Err("write the namespace and the name, such as default/web".to_owned())
    }
}

/// What `--port` is by default.
const ADMIN_PORT: u16 = 9808;

/// Writes the addresses of the nodes that serve a LoadBalancer Service into its status.
#[derive(Clone, Debug, Parser)]
#[command(name = "highwire-controller", version)]
pub struct Config {
    /// Who this is in the election of the leader; no two controllers may share it.
    /// In a Pod, its name.
    #[arg(long, env = "POD_NAME", value_parser = identity)]
    pub identity: String,
    /// The controller's Pod, by which it learns whether it goes for good when it is asked
    /// to stop. Without it, what it wrote stays.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// The namespace of that Pod and of the Leases.
    #[arg(long, env = "POD_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// Where /healthz, /readyz, /startz and /metrics are served, beside loopback (repeatable).
    /// The status page and /explain are answered to this Pod only.
    #[arg(long, env = "POD_IP", value_name = "IP", value_delimiter = ',')]
    pub listen_address: Vec<IpAddr>,
    /// The port they are served on.
    #[arg(long, default_value_t = ADMIN_PORT)]
    pub port: u16,
    /// Whether Services without spec.loadBalancerClass are served. Give the agents
    /// the same flag.
    #[arg(long = "default-class", default_value = "true", action = ArgAction::Set,
          value_parser = BoolValueParser::new().map(class_policy))]
    pub class_policy: ClassPolicy,
    /// How nodes are advertised.
    #[command(flatten)]
    pub policy: Policy,
    /// The format of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How nodes are advertised.
#[derive(Clone, Debug, clap::Args)]
pub struct Policy {
    /// Whether nodes with the label node.kubernetes.io/exclude-from-external-load-balancers
    /// are advertised all the same. kubeadm sets it on every control-plane node, also
    /// on the only node of a cluster.
    #[arg(long, default_value_t = false, action = ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true")]
    pub ignore_exclude_label: bool,
    /// How many seconds a Service's list of addresses is held that would become empty
    /// only because agents are silent; 0 for not at all. Programs that watch the status, such
    /// as ExternalDNS, act on an empty list at once.
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    pub empty_hold: Duration,
    /// How many nodes a Service lists that has no annotation highwire.dev/max-addresses,
    /// each with all of its addresses; 0 for all.
    #[arg(long, default_value_t = 64, value_name = "NODES")]
    pub max_addresses: u16,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ignore_exclude_label: false,
            empty_hold: Duration::from_secs(30),
            max_addresses: 64,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, ParseIntError> {
    let seconds: u32 = text.parse()?;
    Ok(Duration::from_secs(seconds.into()))
}

fn class_policy(default_class: bool) -> ClassPolicy {
    if default_class {
        ClassPolicy::DefaultAndOurs
    } else {
        ClassPolicy::OursOnly
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
        let line = [&["highwire-controller"], flags].concat();
        Cli::parse_from(line).map(|cli| match cli {
            Cli::Run(config) => *config,
            Cli::Explain(explain) => panic!("{explain:?}"),
        })
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn explain_needs_no_flags_and_takes_the_name_of_a_service() {
        let explain = |flags: &[&str]| {
            let line = [&["highwire-controller", "explain"], flags].concat();
            Cli::parse_from(line).map(|cli| match cli {
                Cli::Explain(explain) => (explain.service, explain.port, explain.output),
                Cli::Run(config) => panic!("{config:?}"),
            })
        };
        assert_eq!(explain(&[]).unwrap(), (None, 9808, Output::Text));
        let one = explain(&["shop/web", "-o", "json"]).unwrap();
        assert_eq!(one, (Some("shop/web".to_owned()), 9808, Output::Json));
        for wrong in ["web", "shop/", "shop/web&x", "shop/web x", "shop/web?"] {
            assert!(explain(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn flags_become_policies() {
        let config = parse(&["--identity=c1", "--default-class=false"]).unwrap();
        assert_eq!(config.class_policy, ClassPolicy::OursOnly);
        let config = parse(&["--identity=c1"]).unwrap();
        assert_eq!(config.class_policy, ClassPolicy::DefaultAndOurs);
        assert!(!config.policy.ignore_exclude_label);
        let (flags, policy) = (config.policy, Policy::default());
        assert_eq!(flags.empty_hold, policy.empty_hold);
        assert_eq!(flags.max_addresses, policy.max_addresses);
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
