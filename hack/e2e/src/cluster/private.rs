//! A cluster of a test's own, for what would disturb others.

use std::sync::{Arc, Weak};

use anyhow::{Context, Result};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use crate::cluster::config::Config;
use crate::cluster::handle::Cluster;
use crate::cluster::lifecycle;
use crate::lab::init::Lifeline;
use crate::lab::test_run::{self, Leftover};

/// How many of them a test run has at once: each starts seven or more processes of half
/// a GiB together, and then its test mostly waits.
const AT_ONCE: usize = 4;
static ROOM: Semaphore = Semaphore::const_new(AT_ONCE);

/// A cluster that goes at the end of the test, or when the process ends that has it.
pub struct PrivateCluster {
    cluster: Cluster,
    running: Option<Running>,
}

/// What it takes for the cluster to be there.
struct Running {
    name: String,
    lifeline: Lifeline,
    _room: SemaphorePermit<'static>,
}

impl PrivateCluster {
    /// Starts one with `nodes` nodes beside the shared cluster, alike but for its
    /// name, which ends in `suffix`.
    pub async fn up(suffix: &str, nodes: u8) -> Result<Self> {
        Self::up_with(suffix, nodes, |_| {}).await
    }

    /// The same, not alike in what `change` changes.
    pub async fn up_with(
        suffix: &str,
        nodes: u8,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let room = ROOM.acquire().await?;
        let shared = Cluster::shared()?;
        let mut config = Config {
            name: format!("{}{suffix}", shared.name),
            nodes,
            ..shared
        };
        change(&mut config);
        let name = config.name.clone();
        match lifecycle::up(&config, |_| {}).await {
            Ok((cluster, lifeline)) => Ok(Self {
                cluster,
                running: Some(Running {
                    name,
                    lifeline,
                    _room: room,
                }),
            }),
            Err(error) => {
                lifecycle::down(&name).context("remove what had been started")?;
                Err(error)
            }
        }
    }
}

impl std::ops::Deref for PrivateCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// Where the tests of a file find the private cluster that they share.
pub type FileSlot = Mutex<Weak<PrivateCluster>>;

/// A private cluster that the tests of a file share, each with nodes of its own. It goes
/// with the last of them.
pub struct FileCluster {
    cluster: Cluster,
    _shared: Arc<PrivateCluster>,
}

impl FileCluster {
    /// The cluster in that slot; the first test brings it up.
    pub async fn join(
        slot: &FileSlot,
        up: impl Future<Output = Result<PrivateCluster>>,
    ) -> Result<Self> {
        let mut slot = slot.lock().await;
        let shared = match slot.upgrade() {
            Some(shared) => shared,
            None => Arc::new(up.await?),
        };
        *slot = Arc::downgrade(&shared);
        // A client belongs to the runtime of the test that made it.
        let cluster = Cluster::open(&shared.config().name).await?;
        Ok(Self {
            cluster,
            _shared: shared,
        })
    }
}

impl std::ops::Deref for FileCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for PrivateCluster {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            test_run::at_end(running);
        }
    }
}

impl Leftover for Running {
    fn remove(self: Box<Self>) {
        if let Err(error) = lifecycle::down(&self.name) {
            eprintln!("cluster {}: {error:#}", self.name);
        }
    }

    fn keep(self: Box<Self>) {
        if let Err(error) = self.lifeline.detach() {
            eprintln!("cluster {}: {error:#}", self.name);
        }
    }
}
