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
        let reader = Reader::start(cluster, name, ("external-dns", "external-dns"), &all)?;
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
        let program = ("traefik", "traefik-ingress-controller");
        let reader = Reader::start(cluster, name, program, &[&flag])?;
        Ok(Self { _reader: reader })
    }
}

impl Reader {
    /// Starts a program of that folder as an account of the namespace `default`, which its
    /// own manifests give their rights to.
    fn start(
        cluster: &Cluster,
        name: &str,
        (program, account): (&str, &str),
        flags: &[&str],
    ) -> Result<Self> {
        let folder = std::env::var_os(READERS).map(PathBuf::from);
        let folder = folder.with_context(|| {
            format!(
                "{READERS} is not set: hack/test sets it; by hand, {READERS}=$(hack/build-readers)"
            )
        })?;
        let path = |file: &str| folder.join(file).display().to_string();
        cluster.kubectl(&["apply", "-f", &path(&format!("{program}.yaml"))])?;
        let unit = cluster.unit(&format!("reader-{name}"));
        let kubeconfig = account::kubeconfig(cluster, unit.name(), "default", account)?;
        let argv = [path(program)].into_iter();
        let argv = argv.chain(flags.iter().map(ToString::to_string)).collect();
        let spec = Spec::new(unit.name(), &cluster.netns("cp")?, argv)
            .env("KUBECONFIG", kubeconfig.display().to_string());
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
