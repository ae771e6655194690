//! The agent on a box outside the cluster.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::bed::account::kubeconfig;
use crate::bed::outside_box::OutsideBox;
use crate::cluster::handle::Cluster;
use crate::cluster::layout::AGENT_PORT;
use crate::highwire::program::{AGENT_CAPABILITIES, Programs as _};
use crate::highwire::workload::NAMESPACE;
use crate::lab::http::{ConnectError, http_text};
use crate::lab::netns::Netns;
use crate::lab::test_run::{self, Leftover};
use crate::lab::unit::{Spec, Unit};
use crate::lab::wait::try_wait_for;

/// How long it may take to end.
const GRACE: Duration = Duration::from_secs(20);

/// `highwire-agent edge` on a box. It ends with the test.
pub struct EdgeAgent {
    unit: Unit,
    netns: Netns,
    program: PathBuf,
}

impl EdgeAgent {
    /// Starts one for the ExternalLoadBalancer `name`, with a token as the documents say, and
    /// waits until it is ready.
    pub async fn start(
        cluster: &Cluster,
        on: &OutsideBox,
        name: &str,
        flags: &[&str],
    ) -> Result<Self> {
        let netns = on.netns().clone();
        let forwards = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ];
        netns.sysctl(&forwards)?;
        let unit = cluster.unit(&format!("edge-{}", netns.role()));
        let program = cluster.agent("n1")?.binary().to_owned();
        let argv = [
            "setpriv",
            "--no-new-privs",
            "--inh-caps=-all",
            &format!("--bounding-set=-all,{}", AGENT_CAPABILITIES.join(",")),
            &program.display().to_string(),
            "edge",
            &format!("--name={name}"),
            "--listener-hold-down=1s",
            "--lease-duration=6",
        ];
        let argv = argv.iter().chain(flags).map(ToString::to_string).collect();
        // The account that deploy/22-rbac-edge.yaml makes.
        let kubeconfig = kubeconfig(cluster, unit.name(), NAMESPACE, "highwire-edge")?;
        let spec = Spec::new(unit.name(), &netns, argv)
            .env("KUBECONFIG", kubeconfig.display().to_string())
            .env("RUST_BACKTRACE", "1");
        Unit::spawn(cluster.state(), spec)?;
        let started = Self {
            unit,
            netns,
            program,
        };
        started.wait_ready().await?;
        Ok(started)
    }

    /// Its process.
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    /// What `highwire-agent explain` says on the box.
    pub fn explain(&self, arguments: &[&str]) -> Result<String> {
        let program = self.program.display().to_string();
        let argv = ["env", "--ignore-environment", &program, "explain"];
        self.netns.check(&[&argv, arguments].concat())
    }

    /// Starts it again with the command line of last time.
    pub async fn start_again(&self) -> Result<()> {
        self.unit.start_again()?;
        self.wait_ready().await
    }

    async fn wait_ready(&self) -> Result<()> {
        let what = format!("{} to be ready", self.unit.name());
        let ready = try_wait_for(&what, GRACE, || async { self.get("/readyz") }).await;
        ready
            .map(drop)
            .map_err(|error| error.context(self.unit.tail(20)))
    }

    /// What a path of its admin port answers.
    pub fn get(&self, path: &str) -> Result<String, ConnectError> {
        let admin: SocketAddr = (Ipv4Addr::LOCALHOST, AGENT_PORT).into();
        let ask = || http_text(admin, path, Duration::from_secs(2));
        self.netns.run(ask)
    }
}

impl Drop for EdgeAgent {
    fn drop(&mut self) {
        test_run::at_end(Removal(self.unit.clone()));
    }
}

/// One that was dropped.
struct Removal(Unit);

impl Leftover for Removal {
    fn remove(self: Box<Self>) {
        if let Err(error) = self.0.stop(GRACE) {
            eprintln!("{}: {error:#}", self.0.name());
        }
    }

    fn keep(self: Box<Self>) {}
}
