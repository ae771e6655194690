//! Load on an echo Pod: how many requests and connections a path carries.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bed::traffic::{http_get, tcp_connect};
use crate::lab::netns::Netns;

/// No exchange takes longer, unless the path is broken.
const LIMIT: Duration = Duration::from_secs(2);

/// What one round of load came to.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Exchanges per second, of all clients together.
    pub per_second: f64,
    /// What 99 % of the exchanges took at most.
    pub p99: Duration,
}

/// How a client talks to the Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// A request on a connection that stays open.
    Request,
    /// A connection, a request on it, and its end.
    Connection,
}

/// Lets `clients` threads in `from` exchange with `to`, each so often, one after the
/// other.
///
/// # Errors
/// If any exchange fails.
pub fn load(
    from: &Netns,
    to: SocketAddr,
    exchange: Exchange,
    clients: usize,
    times: usize,
) -> Result<Rate> {
    let start = Instant::now();
    let client = || from.run(|| exchange_often(to, exchange, times));
    let finished: Vec<Result<Vec<Duration>>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let joined = clients.into_iter().map(thread::ScopedJoinHandle::join);
        joined
            .map(|joined| joined.ok().context("a client panicked")?)
            .collect()
    });
    let elapsed = start.elapsed().as_secs_f64();
    let mut took = Vec::new();
    for client in finished {
        took.extend(client?);
    }
    took.sort();
    let p99 = took.get(took.len() * 99 / 100).copied();
    Ok(Rate {
        per_second: took.len() as f64 / elapsed,
        p99: p99.context("no exchange was finished")?,
    })
}

fn exchange_often(to: SocketAddr, exchange: Exchange, times: usize) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(times);
    let mut stream = match exchange {
        Exchange::Request => Some(tcp_connect(to, LIMIT)?),
        Exchange::Connection => None,
    };
    for _ in 0..times {
        let start = Instant::now();
        match &mut stream {
            Some(stream) => drop(stream.say("x")?),
            None => drop(http_get(to, LIMIT)?),
        }
        took.push(start.elapsed());
    }
    Ok(took)
}
