//! Asks at addresses and ports of nodes, as a client outside, and judges the answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::expectation::{Endpoint, Expectation};
use super::violation::Violation;
use super::world::Protocol;
use crate::bed::traffic::{UdpFlow, http_get, udp_flow};
use crate::lab::http::ConnectError;
use crate::lab::netns::Netns;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_millis(800);
/// How many are asked at a time.
const AT_ONCE: usize = 16;

/// UDP clients that keep their source port from check to check.
pub(super) type Flows = BTreeMap<Endpoint, UdpFlow>;

/// A question and the right answer.
#[derive(Clone)]
pub(super) struct Probe {
    /// The node.
    pub(super) node: String,
    /// Where on it.
    pub(super) at: Endpoint,
    /// What has to happen.
    pub(super) expectation: Expectation,
}

/// Who asks.
enum Job<'a> {
    /// A new connection or UDP flow.
    New(&'a Probe),
    /// A UDP flow of earlier checks.
    Kept(&'a Probe, UdpFlow),
}

/// Asks from that namespace; returns what is not as it has to be.
pub(super) fn violations(from: &Netns, probes: &[Probe], flows: &mut Flows) -> Vec<Violation> {
    let mut jobs: Vec<Job<'_>> = probes.iter().map(Job::New).collect();
    for probe in probes {
        if let Some(flow) = flows.remove(&probe.at) {
            jobs.push(Job::Kept(probe, flow));
        }
    }
    let jobs = Mutex::new(jobs);
    let found = Mutex::new((Vec::new(), std::mem::take(flows)));
    let work = || {
        loop {
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(job) = job else { break };
            let (violation, flow) = job.ask();
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.0.extend(violation);
            if let Some((at, flow)) = flow {
                found.1.insert(at, flow);
            }
        }
    };
    // Threads start in the namespace of the one that starts them.
    from.run(|| {
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(work);
            }
        });
    });
    let (violations, kept) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    *flows = kept;
    violations
}

impl Job<'_> {
    /// Asks; the UDP flow is kept.
    fn ask(self) -> (Option<Violation>, Option<(Endpoint, UdpFlow)>) {
        match self {
            Self::New(probe) if probe.at.protocol == Protocol::Tcp => {
                let got = http_get(probe.to(), LIMIT).map(|reply| reply.pod);
                (probe.judge(got, ""), None)
            }
            Self::New(probe) => match udp_flow(probe.to()) {
                Ok(mut flow) => {
                    let got = flow.ask(LIMIT).map(|reply| reply.pod);
                    (probe.judge(got, ""), Some((probe.at, flow)))
                }
                Err(error) => (probe.judge(Err(error), ""), None),
            },
            Self::Kept(probe, mut flow) => {
                let got = flow.ask(LIMIT).map(|reply| reply.pod);
                let of = " to a flow of an earlier check";
                (probe.judge(got, of), Some((probe.at, flow)))
            }
        }
    }
}

impl Probe {
    fn to(&self) -> SocketAddr {
        SocketAddr::new(self.at.address, self.at.port)
    }

    fn judge(&self, got: Result<String, ConnectError>, of: &str) -> Option<Violation> {
        let is_tcp = self.at.protocol == Protocol::Tcp;
        let is_refused = matches!(got, Err(ConnectError::Refused));
        let own = format!("host-{}", self.node);
        let is_right = match (&self.expectation, &got) {
            (Expectation::Unspecified, _) => true,
            (Expectation::Served { by, .. }, Ok(pod)) => by.contains(pod),
            (Expectation::Served { .. }, Err(_)) => false,
            (Expectation::Perhaps { by }, Ok(pod)) => by.contains(pod),
            (Expectation::Perhaps { .. }, Err(_)) => !is_tcp || is_refused,
            (Expectation::HostListener { pods, .. }, Ok(name)) => {
                name.starts_with(&own) || pods.contains(name)
            }
            // Not every listener talks as ours do, but none leaves a client without a word.
            (Expectation::HostListener { from_elsewhere, .. }, Err(error)) => match error {
                ConnectError::Other(_) => true,
                ConnectError::Timeout => *from_elsewhere,
                ConnectError::Refused => false,
            },
            (Expectation::Closed { .. }, Ok(_)) => false,
            // ICMP errors are limited by the kernel: a UDP client may wait.
            (Expectation::Closed { at_once, .. }, Err(_)) => !at_once || !is_tcp || is_refused,
        };
        (!is_right).then(|| Violation::Traffic {
            node: self.node.clone(),
            at: self.to(),
            protocol: self.at.protocol,
            expected: self.expectation.to_string(),
            got: match got {
                Ok(pod) => format!("an answer of {pod}{of}"),
                Err(error) => format!("{error}{of}"),
            },
        })
    }
}
