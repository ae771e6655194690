//! The check: reads the cluster, asks at every port, and compares with the rules.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::endpoints::Client;
use super::expectation::{Endpoint, expectation};
use super::kept::Kept;
use super::probe::{self, Flows, Probe};
use super::violation::{Violation, Violations};
use super::world::{Protocol, World};
use super::{read, report, status};
use crate::cluster::handle::Cluster;
use crate::cluster::layout::{CLIENT_V4, CLIENT_V6};
use crate::lab::wait::scaled;

/// How often it is looked again while something is wrong.
const PAUSE: Duration = Duration::from_millis(200);

/// Compares a cluster with the model, again and again. It remembers which ports were ever
/// asked for, and keeps UDP flows from check to check.
pub struct Checker {
    cluster: Cluster,
    ports: BTreeSet<(Protocol, u16)>,
    flows: Flows,
    checks: u16,
    wrong: Violations,
    kept: Kept,
}

impl Checker {
    /// A checker of that cluster.
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            cluster: cluster.clone(),
            ports: BTreeSet::new(),
            flows: Flows::new(),
            checks: 0,
            wrong: Violations::default(),
            kept: Kept::default(),
        }
    }

    /// Waits until nothing is wrong.
    ///
    /// # Errors
    /// What is still wrong after `limit`.
    pub async fn settled(&mut self, limit: Duration) -> Result<(), Violations> {
        let deadline = Instant::now() + scaled(limit);
        loop {
            let is_last = Instant::now() >= deadline;
            let found = self.look(is_last).await;
            match found.0.is_empty() {
                true => return Ok(()),
                false if is_last => return Err(found),
                false => {
                    self.wrong = found;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// What was last found wrong while it was waited for, in case that took long.
    pub fn last_wrong(&self) -> &Violations {
        &self.wrong
    }

    /// For so long, everything that was right when the cluster had last settled is right: who
    /// answers where, and the entries of ingresses, but those of nodes that `may_leave`. For
    /// moments in which nothing else was asked for, and programs cannot reach the API server.
    ///
    /// # Errors
    /// What is wrong twice in a row.
    pub async fn keeps(
        &mut self,
        time: Duration,
        may_leave: &BTreeSet<String>,
    ) -> Result<(), Violations> {
        let deadline = Instant::now() + scaled(time);
        let mut before = Violations::default();
        loop {
            let found = self.look_again(may_leave).await;
            let both = found.0.iter().filter(|it| before.0.contains(it));
            let both: Vec<_> = both.cloned().collect();
            if !both.is_empty() {
                return Err(Violations(both));
            }
            if found.0.is_empty() && Instant::now() >= deadline {
                return Ok(());
            }
            before = found;
        }
    }

    /// The same, once within that time.
    ///
    /// # Errors
    /// What is still wrong after `limit`.
    pub async fn regains(
        &mut self,
        limit: Duration,
        may_leave: &BTreeSet<String>,
    ) -> Result<(), Violations> {
        let deadline = Instant::now() + scaled(limit);
        loop {
            let is_last = Instant::now() >= deadline;
            let found = self.look_again(may_leave).await;
            if found.0.is_empty() {
                return Ok(());
            }
            if is_last {
                return Err(found);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What was right and is not.
    async fn look_again(&mut self, may_leave: &BTreeSet<String>) -> Violations {
        let mut found = match read::world(&self.cluster).await {
            Ok(world) => self.kept.gone(&world, may_leave),
            Err(error) => vec![unreadable(&error)],
        };
        let from = self.cluster.outside();
        found.extend(probe::violations(&from, &self.kept.probes, &mut self.flows));
        found.sort();
        found.dedup();
        Violations(found)
    }

    /// Everything that is wrong now, changes under way included.
    pub async fn violations(&mut self) -> Violations {
        self.look(true).await
    }

    /// Traffic costs most, so it comes when the rest is right, unless it is wanted `anyway`.
    async fn look(&mut self, anyway: bool) -> Violations {
        let world = match read::world(&self.cluster).await {
            Ok(world) => world,
            Err(error) => return Violations(vec![unreadable(&error)]),
        };
        let mut found = status::violations(&world);
        found.extend(report::violations(&world));
        if found.is_empty() || anyway {
            let probes = self.probes(&world);
            let from = self.cluster.outside();
            found.extend(probe::violations(&from, &probes, &mut self.flows));
            if found.is_empty() {
                self.kept = Kept::new(&world, probes);
            }
        }
        found.sort();
        found.dedup();
        Violations(found)
    }

    /// Every port that a Service asks for or asked for earlier, and one that none does, at
    /// every address of every node.
    fn probes(&mut self, world: &World) -> Vec<Probe> {
        let services = world.services.values();
        let asked = services.flat_map(|service| &service.ports);
        self.ports
            .extend(asked.map(|port| (port.protocol, port.port)));
        self.checks = self.checks.wrapping_add(1);
        let nobodys = 11_000 + self.checks % 1_000;
        let mut ports = self.ports.clone();
        ports.extend([(Protocol::Tcp, nobodys), (Protocol::Udp, nobodys)]);
        let client = Client {
            v4: CLIENT_V4.into(),
            v6: CLIENT_V6.into(),
        };
        let mut probes = Vec::new();
        for node in world.nodes.values() {
            for (protocol, port) in ports.iter().copied() {
                for address in node.host_addresses.iter().copied() {
                    let at = Endpoint {
                        address,
                        protocol,
                        port,
                    };
                    probes.push(Probe {
                        node: node.name.clone(),
                        expectation: expectation(world, node, &client, at),
                        at,
                    });
                }
            }
        }
        probes
    }
}

fn unreadable(error: &anyhow::Error) -> Violation {
    Violation::Unreadable {
        what: format!("{error:#}"),
    }
}
