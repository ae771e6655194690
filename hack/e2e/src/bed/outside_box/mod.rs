//! A box outside the cluster: nginx as a load balancer, and the updater that an
//! ExternalLoadBalancer's `spec.httpUpdater.url` leads to.
//!
//! ```text
//!   outside client ──┐                              ┌── nodes, at their NodePorts
//!                    ├── router ── box 203.0.113.7 ─┘   (the box dials them)
//!   controllers   ───┘             nginx: the streams' ports
//!   (namespace cp)                 updater: port 3000
//! ```
//!
//! The box is a site of its own behind the router: nobody needs a route to it, and it has one
//! to all nodes and to no Pod. Its updater is [`updater`], a task of the test, so that the
//! test can change how it behaves and read what it was asked.
//!
//! ```no_run
//! # use highwire_e2e::{Cluster, OutsideBox};
//! # async fn example(cluster: Cluster) -> anyhow::Result<()> {
//! let outside = OutsideBox::start(&cluster).await?;
//! println!("spec.httpUpdater.url: {}", outside.url());
//! outside.updater().go_down();
//! outside.updater().come_up()?;
//! println!("{:?}", outside.updater().requests());
//! # Ok(())
//! # }
//! ```

pub mod nginx;
pub mod reloads;
pub mod requests;
mod streams;
pub mod updater;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Result, bail};

use crate::bed::outside_box::nginx::Nginx;
use crate::bed::outside_box::reloads::Watcher;
use crate::bed::outside_box::updater::{PATH, PORT, Updater};
use crate::cluster::handle::Cluster;
use crate::cluster::layout::{box_v4, box_v6};
use crate::cluster::network;
use crate::lab::netns::Netns;
use crate::lab::test_run::{self, Leftover};
use crate::lab::unit::Unit;

/// Boxes that a cluster has room for; numbers 1 to 200.
const BOXES: u64 = 200;

/// A box with nginx and an updater. It goes at the end of the test.
///
/// Declare it before what uses it and after the scope, or keep both in a struct with the scope
/// first: then the scope's Services are deleted while the updater still answers.
pub struct OutsideBox {
    parts: Arc<Parts>,
}

struct Parts {
    number: u8,
    fabric: Netns,
    netns: Netns,
    nginx: Arc<Nginx>,
    watcher: Arc<Watcher>,
    updater: Updater,
}

impl OutsideBox {
    /// A box without streams whose updater answers.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let (number, netns) = take(cluster)?;
        let nginx = Arc::new(Nginx::at(&netns));
        let watcher = Arc::new(Watcher::of(&nginx));
        let parts = Parts {
            number,
            fabric: cluster.netns("fabric")?,
            updater: Updater::new(&nginx, &watcher),
            netns,
            nginx,
            watcher,
        };
        // From here on it is removed, whatever fails.
        let started = Self {
            parts: Arc::new(parts),
        };
        network::outside_box(&started.parts.fabric, started.netns(), number)?;
        started.parts.nginx.set_up()?;
        started.parts.nginx.start().await?;
        started.updater().come_up()?;
        Ok(started)
    }

    /// Its address.
    pub fn v4(&self) -> IpAddr {
        box_v4(self.parts.number).into()
    }

    /// Its IPv6 address. nginx listens for IPv4 only, as the updater writes it.
    pub fn v6(&self) -> IpAddr {
        box_v6(self.parts.number).into()
    }

    /// A port of its address.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v4(), port)
    }

    /// Where its updater answers.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.at(PORT))
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.parts.netns
    }

    /// Its updater.
    pub fn updater(&self) -> &Updater {
        &self.parts.updater
    }

    /// What reloads nginx when the updater has changed something.
    pub fn watcher(&self) -> &Watcher {
        &self.parts.watcher
    }

    /// Its nginx.
    pub fn nginx(&self) -> &Nginx {
        &self.parts.nginx
    }

    /// Where nginx sends the traffic of that backend; `None` without one.
    pub fn upstreams(&self, backend: &str) -> Option<BTreeSet<SocketAddr>> {
        let stream = self.nginx().stream(backend)?;
        Some(streams::servers(&stream))
    }

    /// The box boots, and has forgotten all streams. Its updater is away meanwhile.
    pub async fn restart(&self) -> Result<()> {
        self.updater().go_down();
        self.nginx().stop()?;
        self.nginx().forget_streams()?;
        self.nginx().start().await?;
        self.updater().come_up()
    }

    /// Removes it now.
    pub fn remove(self) -> Result<()> {
        self.parts.remove()
    }
}

/// Creates the namespace of the next free number: that is what makes it taken.
fn take(cluster: &Cluster) -> Result<(u8, Netns)> {
    let state = cluster.state();
    for _ in 0..BOXES {
        let number = u8::try_from(1 + state.next("box")? % BOXES)?;
        let netns = Netns::of(state, format!("box-{number}"));
        if netns.exists() {
            continue;
        }
        match netns.create() {
            Ok(()) => return Ok((number, netns)),
            // Somebody was faster.
            Err(_) if netns.exists() => {}
            Err(error) => return Err(error),
        }
    }
    bail!("no room for another box outside the cluster")
}

impl Parts {
    fn remove(&self) -> Result<()> {
        if !self.netns.exists() {
            return Ok(());
        }
        self.updater.go_down();
        self.watcher.end();
        let stopped = self.nginx.remove();
        // A cable that was never plugged cannot be pulled.
        network::unplug_outside_box(&self.fabric, self.number).ok();
        self.netns.delete()?;
        stopped
    }
}

impl Drop for OutsideBox {
    fn drop(&mut self) {
        test_run::at_end(Removal(Arc::clone(&self.parts)));
    }
}

/// A box that was dropped. Its updater answers until the box is removed.
struct Removal(Arc<Parts>);

impl Leftover for Removal {
    fn remove(self: Box<Self>) {
        if let Err(error) = self.0.remove() {
            eprintln!("{}: {error:#}", self.0.netns.name());
        }
    }

    fn keep(self: Box<Self>) {}
}

/// The process of nginx on a box; its log has what the updater was asked, too.
fn unit(netns: &Netns) -> Unit {
    Unit::new(netns.state(), netns.role())
}
