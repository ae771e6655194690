//! Programs of others that read what Highwire writes in Services: ExternalDNS, and Traefik's
//! provider for Ingresses. They run beside the controllers, as accounts with the rights that
//! their own documents give them.

pub mod zone;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bed::account;
use crate::bed::readers::zone::Zone;
use crate::bed::service::Svc;
use crate::cluster::handle::Cluster;
use crate::lab::test_run::{self, Leftover};
use crate::lab::unit::{Spec, Unit};
use crate::lab::wait::try_wait_for;

/// Names the folder that `hack/build-readers` prints.
const READERS: &str = "HIGHWIRE_READERS";
/// How long one may take to start.
const START: Duration = Duration::from_secs(30);
/// How long one may take to end.
const END: Duration = Duration::from_secs(10);

/// What there is of a program in that folder.
struct Program {
    /// Itself, and, with `.yaml`, its account and rights.
    name: &'static str,
    /// The account, in the namespace `default`, where its own manifests have it.
    account: &'static str,
    /// By which variable it finds its kubeconfig.
    kubeconfig: &'static str,
}

const EXTERNAL_DNS: Program = Program {
    name: "external-dns",
    account: "external-dns",
    kubeconfig: "EXTERNAL_DNS_KUBECONFIG",
};

const TRAEFIK: Program = Program {
    name: "traefik",
    account: "traefik-ingress-controller",
    kubeconfig: "KUBECONFIG",
};

/// A program of others. It ends with the test.
struct Reader(Unit);

/// ExternalDNS, and the zone into which it writes records.
pub struct ExternalDns {
    zone: Zone,
    _reader: Reader,
}

/// Traefik, as far as it publishes the addresses of a Service in the status of Ingresses.
pub struct Traefik {
    _reader: Reader,
}

impl ExternalDns {
    /// Starts one with these flags, and waits until it has read the zone. Its name, of which
    /// there is one in a cluster, is the owner of its records.
    pub async fn start(cluster: &Cluster, name: &str, flags: &[&str]) -> Result<Self> {
        let zone = Zone::start(&cluster.netns("cp")?)?;
        let url = format!("--webhook-provider-url={}", zone.url());
        let owner = format!("--txt-owner-id={name}");
        let all = [
            "--provider=webhook",
            &url,
            "--registry=txt",
            &owner,
            "--metrics-address=127.0.0.1:0",
            "--log-level=debug",
        ];
        let all: Vec<&str> = all.iter().chain(flags).copied().collect();
        let reader = Reader::start(cluster, name, &EXTERNAL_DNS, &all)?;
        let asked = try_wait_for("ExternalDNS to read its zone", START, || async {
            zone.was_read() || !reader.0.is_running()
        });
        asked.await.with_context(|| reader.0.tail(20))?;
        reader.0.check_running()?;
        Ok(Self {
            zone,
            _reader: reader,
        })
    }

    /// The zone.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }
}

impl Traefik {
    /// Starts one that publishes that Service. Its name is the only one of the cluster.
    pub fn start(cluster: &Cluster, name: &str, publishes: &Svc) -> Result<Self> {
        let namespace = publishes.object.metadata.namespace.as_deref();
        let flag = format!(
            "--providers.kubernetesingress.ingressendpoint.publishedservice={}/{}",
            namespace.unwrap_or_default(),
            publishes.name()
        );
        let reader = Reader::start(cluster, name, &TRAEFIK, &[&flag])?;
        Ok(Self { _reader: reader })
    }
}

impl Reader {
    fn start(cluster: &Cluster, name: &str, program: &Program, flags: &[&str]) -> Result<Self> {
        let folder = std::env::var_os(READERS).map(PathBuf::from);
        let folder = folder.with_context(|| {
            format!(
                "{READERS} is not set: hack/test sets it; by hand, {READERS}=$(hack/build-readers)"
            )
        })?;
        let path = folder.join(program.name).display().to_string();
        cluster.kubectl(&["apply", "-f", &format!("{path}.yaml")])?;
        let unit = cluster.unit(&format!("reader-{name}"));
        let kubeconfig = account::kubeconfig(cluster, unit.name(), "default", program.account)?;
        let argv = [path].into_iter();
        let argv = argv.chain(flags.iter().map(ToString::to_string)).collect();
        let spec = Spec::new(unit.name(), &cluster.netns("cp")?, argv)
            .env(program.kubeconfig, kubeconfig.display().to_string());
        Unit::spawn(cluster.state(), spec).map(Self)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        test_run::at_end(Removal(self.0.clone()));
    }
}

/// One that was dropped.
struct Removal(Unit);

impl Leftover for Removal {
    fn remove(self: Box<Self>) {
        if let Err(error) = self.0.stop(END) {
            eprintln!("{}: {error:#}", self.0.name());
        }
    }

    fn keep(self: Box<Self>) {}
}
