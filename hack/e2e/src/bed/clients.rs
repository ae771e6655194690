//! Clients that go on while the cluster changes: none of their connections may fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::bed::expect::LONG;
use crate::cluster::handle::Cluster;
use crate::highwire;
use crate::lab::netns::Netns;

/// Between two connections of a client: more would only use up its ports.
const PACE: Duration = Duration::from_millis(10);

/// A lost SYN is sent again after 1 s.
const SLOW: Duration = Duration::from_millis(900);

/// Clients that connect to the Service until they are dropped.
pub struct Clients {
    done: Arc<AtomicBool>,
    running: Vec<JoinHandle<Result<usize>>>,
}

impl Clients {
    /// One for every port of every node that serves. Each also keeps a connection from the
    /// start to the end.
    pub fn start(cluster: &Cluster, ports: &[u16]) -> Result<Self> {
        Self::start_with(cluster, ports, true)
    }

    /// The same without those, for Pods that do not stay.
    pub fn start_connecting(cluster: &Cluster, ports: &[u16]) -> Result<Self> {
        Self::start_with(cluster, ports, false)
    }

    fn start_with(cluster: &Cluster, ports: &[u16], keep: bool) -> Result<Self> {
        let mut clients = Self {
            done: Arc::default(),
            running: Vec::new(),
        };
        for node in highwire::SERVING {
            for port in ports {
                let (from, to) = (cluster.outside(), cluster.node(node)?.v4(*port));
                let done = Arc::clone(&clients.done);
                let client = spawn_blocking(move || connect(&from, to, keep, &done));
                clients.running.push(client);
            }
        }
        Ok(clients)
    }

    /// How many connections each made; an error if any failed.
    pub async fn stop(mut self) -> Result<Vec<usize>> {
        self.done.store(true, Ordering::Relaxed);
        let mut made = Vec::new();
        for client in self.running.drain(..) {
            made.push(client.await??);
        }
        Ok(made)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // Else the test would never end.
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Connects until `done`. A slow connection does not count as failed: other tests keep this
/// machine busy.
fn connect(from: &Netns, to: SocketAddr, keep: bool, done: &AtomicBool) -> Result<usize> {
    let mut kept = keep.then(|| from.tcp_connect(to, LONG)).transpose()?;
    let mut made = 0;
    while !done.load(Ordering::Relaxed) {
        let start = Instant::now();
        from.http_get(to, LONG)
            .with_context(|| format!("{to}, after {made} connections"))?;
        made += 1;
        if start.elapsed() > SLOW {
            println!("connection {made} to {to} took {:?}", start.elapsed());
        }
        thread::sleep(PACE);
    }
    if let Some(kept) = &mut kept {
        kept.say("still there")
            .with_context(|| format!("the connection to {to} from before"))?;
    }
    Ok(made)
}
