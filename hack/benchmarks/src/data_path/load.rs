//! Load on a path: wrk for requests and connections, iperf3 for bytes and packets.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use highwire_e2e::Netns;
use highwire_e2e::lab::state::State;
use serde_json::Value;

const SCRIPT: &str = include_str!("wrk.lua");
/// A thread for each Pod, so that the straight path reaches all of them.
const THREADS: u8 = 4;
/// Connections at a time, if as many requests are to be answered as can be.
pub(crate) const MANY: u8 = 16;
/// Bytes of a datagram: one that fills a packet, and a small one.
pub(crate) const LARGE: u16 = 1400;
/// See [`LARGE`].
pub(crate) const SMALL: u16 = 64;
/// How long iperf3's server may take until it is free again.
const FREE: Duration = Duration::from_secs(5);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// Requests on connections that stay open.
    Request,
    /// A new connection for each request.
    Connection,
}

/// What came of a round of wrk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchanges {
    pub(crate) count: f64,
    pub(crate) per_second: f64,
    /// Milliseconds that 50, 90, 99 and 99.9 % took at most.
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// What iperf3 sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// One TCP stream.
    Tcp,
    /// Datagrams of so many bytes, as fast as the sender can.
    Udp(u16),
}

/// What iperf3's receiver got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) bits_per_second: f64,
    /// Of UDP only.
    pub(crate) packets_per_second: f64,
    /// What was sent and not received, as a share; of UDP only.
    pub(crate) lost: f64,
}

/// Runs wrk for a second with so many connections at a time. Exchanges that fail are an error.
pub(crate) fn exchange(
    state: &State,
    client: &Netns,
    to: &[SocketAddr],
    exchange: Exchange,
    connections: u8,
) -> Result<Exchanges> {
    let first = to.first().context("no address")?;
    let script = state.path("wrk.lua");
    fs::write(&script, SCRIPT).with_context(|| format!("write {}", script.display()))?;
    let addresses: Vec<String> = to.iter().map(ToString::to_string).collect();
    let line = format!(
        "ADDRESSES={} exec wrk --threads {} --connections {connections} --duration 1s \
         --timeout 2s --script {} {} http://{first}/",
        addresses.join(","),
        THREADS.min(connections),
        script.display(),
        match exchange {
            Exchange::Request => "",
            Exchange::Connection => "--header 'Connection: close'",
        }
    );
    exchanges(&client.check(&["sh", "-c", &line])?)
}

/// Reads the line that `wrk.lua` prints.
fn exchanges(said: &str) -> Result<Exchanges> {
    let figures = said.lines().find_map(|line| line.strip_prefix("figures "));
    let figures = figures.with_context(|| format!("wrk said no figures: {said}"))?;
    let figures = figures.split(' ').map(str::parse);
    let figures: Vec<f64> = figures.collect::<Result<_, _>>()?;
    let [count, duration, p50, p90, p99, p999, errors] = figures[..] else {
        bail!("wrk said other figures than wanted: {said}");
    };
    ensure!(
        errors == 0.0 && count > 0.0,
        "{errors} of {count} exchanges failed: {said}"
    );
    Ok(Exchanges {
        count,
        per_second: count / duration * 1e6,
        p50: p50 / 1e3,
        p90: p90 / 1e3,
        p99: p99 / 1e3,
        p999: p999 / 1e3,
    })
}

/// Runs iperf3 for a second.
pub(crate) fn stream(client: &Netns, to: SocketAddr, stream: Stream) -> Result<Received> {
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let mut argv = vec!["iperf3", "--client", &address, "--port", &port];
    argv.extend(["--time", "1", "--json"]);
    let length = match stream {
        Stream::Tcp => None,
        Stream::Udp(length) => Some(length.to_string()),
    };
    if let Some(length) = &length {
        argv.extend(["--udp", "--bitrate", "0", "--length", length]);
    }
    // It serves one client at a time, and takes a moment to leave the one before.
    let begun = Instant::now();
    let said = loop {
        match client.check(&argv) {
            Err(error) if begun.elapsed() > FREE => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(said) => break said,
        }
    };
    received(
        &serde_json::from_str(&said).context("understand iperf3")?,
        stream,
    )
}

/// Reads what iperf3 prints with `--json`.
fn received(said: &Value, stream: Stream) -> Result<Received> {
    let number = |sum: &str, field: &str| {
        let value = said["end"][sum][field].as_f64();
        value.with_context(|| format!("iperf3 left end.{sum}.{field} out: {said}"))
    };
    match stream {
        Stream::Tcp => Ok(Received {
            bits_per_second: number("sum_received", "bits_per_second")?,
            packets_per_second: 0.0,
            lost: 0.0,
        }),
        Stream::Udp(length) => {
            let (sent, lost) = (number("sum", "packets")?, number("sum", "lost_packets")?);
            ensure!(sent > lost, "{lost} of {sent} datagrams were lost");
            let packets_per_second = (sent - lost) / number("sum", "seconds")?;
            Ok(Received {
                bits_per_second: packets_per_second * f64::from(length) * 8.0,
                packets_per_second,
                lost: lost / sent,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrk_counts_in_microseconds() {
        let read =
            exchanges("Running 1s test\nfigures 50000 2000000 110 300 900 2500 0\n").unwrap();
        assert_eq!(read.per_second, 25_000.0);
        assert_eq!((read.p50, read.p90), (0.11, 0.3));
        assert_eq!((read.p99, read.p999), (0.9, 2.5));
    }

    #[test]
    fn a_round_with_failures_is_none() {
        assert!(exchanges("figures 50000 2000000 110 300 900 2500 1").is_err());
        assert!(exchanges("figures 0 2000000 0 0 0 0 0").is_err());
        assert!(exchanges("unable to connect").is_err());
    }

    #[test]
    fn of_datagrams_those_received_count() {
        let said = json!({"end": {"sum": {"packets": 3000, "lost_packets": 1000, "seconds": 2.0}}});
        let read = received(&said, Stream::Udp(64)).unwrap();
        assert_eq!(read.packets_per_second, 1000.0);
        assert_eq!(read.bits_per_second, 512_000.0);
        assert!(received(&said, Stream::Tcp).is_err());
    }
}
