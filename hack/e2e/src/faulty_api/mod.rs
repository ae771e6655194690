//! A network between one client and the real API server that breaks by rules.
//!
//! It is a reverse proxy, and no API server: what it passes on is answered by the real one,
//! with the client's own credentials, so that authentication, RBAC and admission are real.
//! Invented are only refusals ([`Refusal`]) and broken events; old lists are read from
//! etcd's history by the real API server ([`Fault::OldList`]).
//!
//! Each client that is to suffer gets one of its own:
//!
//! ```no_run
//! # use highwire_e2e::{Cluster, Programs as _};
//! # use highwire_e2e::faulty_api::{Fault, FaultyApi, Refusal, Requests, Rule};
//! # async fn example() -> anyhow::Result<()> {
//! let cluster = Cluster::attach().await?;
//! let faulty = FaultyApi::start(&cluster).await?;
//! let agent = cluster.agent("n1")?.through(&faulty);
//! agent.start(&[]).await?;
//! faulty.set(vec![Rule::new(Requests::of("services"), Fault::Refuse(Refusal::InternalError))]);
//! // …
//! faulty.clear();
//! # Ok(())
//! # }
//! ```

mod answer;
mod counts;
mod request;
mod rule;
mod server;
mod shared;
mod stream;

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

pub use counts::{Counts, Outcome};
pub use request::Verb;
pub use rule::{Fault, Refusal, Requests, Rule, WatchFault};

use crate::cluster::handle::Cluster;
use shared::Shared;

/// The network between one client and the API server. It ends when this is dropped, and with
/// it the client's connections.
#[derive(Debug)]
pub struct FaultyApi {
    address: SocketAddr,
    shared: Shared,
    /// Dropped, it ends.
    _running: oneshot::Sender<()>,
}

impl FaultyApi {
    /// Starts one at the control plane's address, on a port of its own. Until rules are set
    /// it passes everything on.
    ///
    /// # Errors
    /// If it cannot listen there, or the cluster's certificates cannot be read.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let address = cluster.config().ip_family.control_plane();
        let listener = cluster.netns("cp")?.run(|| TcpListener::bind((address, 0)));
        let listener = listener.with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let pki = |file: &str| cluster.state().path("pki").join(file);
        let tls = server::tls(&pki("apiserver.crt"), &pki("apiserver.key"))?;
        let config = cluster.anonymous_config().await?;
        let shared = Shared::default();
        let serving = shared.clone();
        let (_running, ended) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // Tests block their own threads.
        std::thread::Builder::new()
            .name("faulty-api".into())
            .spawn(move || {
                runtime.block_on(async {
                    let outcome = async {
                        let listener = tokio::net::TcpListener::from_std(listener)?;
                        let to = server::upstream(&config)?;
                        tokio::select! {
                            () = server::serve(listener, tls, to, serving) => {}
                            _ = ended => {}
                        }
                        anyhow::Ok(())
                    };
                    if let Err(error) = outcome.await {
                        eprintln!("faulty API server: {error:#}");
                    }
                });
                runtime.shutdown_background();
            })?;
        Ok(Self {
            address,
            shared,
            _running,
        })
    }

    /// Its URL, from anywhere in the cluster.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// From now on these faults and no others happen; of rules that are about the same
    /// request the first one counts.
    pub fn set(&self, rules: Vec<Rule>) {
        self.shared.set(rules);
    }

    /// From now on everything is passed on. What fell silent stays so.
    pub fn clear(&self) {
        self.set(Vec::new());
    }

    /// How often something went wrong with such requests since the rules were set.
    #[must_use]
    pub fn faults(&self, requests: &Requests) -> u64 {
        self.counts().faults(requests) - self.shared.before().faults(requests)
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }
}
