//! The document of the data path.

use anyhow::Result;

use crate::data_path::bed::Presence;
use crate::data_path::load::{Exchange, Exchanges, LARGE, Received, SMALL, Stream};
use crate::data_path::path::Path;
use crate::data_path::rounds::{Measured, Rounds};
use crate::data_path::saved::saved;
use crate::data_path::stalls::Stalls;
use crate::output::document::Document;
use crate::output::plot::{Axis, Plot};
use crate::output::stats::Sample;
use crate::output::table::{Table, number};

/// What wrk found with so many ports on the node, and with so many connections at a time.
pub(crate) struct Level {
    pub(crate) ports: usize,
    pub(crate) at_a_time: u8,
    pub(crate) found: Exchanged<Path>,
}

/// Both exchanges of several rounds, by what was compared.
pub(crate) struct Exchanged<K> {
    requests: Rounds<K, Exchanges>,
    connections: Rounds<K, Exchanges>,
}

impl<K> Exchanged<K> {
    /// Measures both, one after the other.
    pub(crate) fn run(measure: impl Fn(Exchange) -> Result<Rounds<K, Exchanges>>) -> Result<Self> {
        Ok(Self {
            requests: measure(Exchange::Request)?,
            connections: measure(Exchange::Connection)?,
        })
    }

    /// Those of one exchange.
    pub(crate) fn rounds(&self, exchange: Exchange) -> &Rounds<K, Exchanges> {
        match exchange {
            Exchange::Request => &self.requests,
            Exchange::Connection => &self.connections,
        }
    }
}

/// What iperf3 found by each stream.
pub(crate) struct Streams<T> {
    tcp: T,
    large: T,
    small: T,
}

/// What is compared.
pub(crate) type Figure = fn(&Measured<Exchanges>) -> f64;

/// A ratio that the design asks for.
struct Target {
    what: &'static str,
    path: Path,
    to: Path,
    figure: Figure,
    wanted: Wanted,
}

#[derive(Clone, Copy)]
enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Wanted {
    fn allows(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(limit) => ratio >= limit,
            Self::AtMost(limit) => ratio <= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(limit) => format!("≥ {limit:.2}"),
            Self::AtMost(limit) => format!("≤ {limit:.2}"),
        }
    }
}

pub(crate) fn per_second(measured: &Measured<Exchanges>) -> f64 {
    measured.figure.per_second
}

pub(crate) fn p90(measured: &Measured<Exchanges>) -> f64 {
    measured.figure.p90
}

pub(crate) fn p99(measured: &Measured<Exchanges>) -> f64 {
    measured.figure.p99
}

/// With as many exchanges as the machine can carry.
const RATES: [Target; 3] = [
    Target {
        what: "per second, Highwire ÷ NodePort",
        path: Path::Highwire,
        to: Path::NodePort,
        figure: per_second,
        wanted: Wanted::AtLeast(0.97),
    },
    Target {
        what: "per second, Highwire ÷ NodePort, both with policy Local",
        path: Path::HighwireLocal,
        to: Path::NodePortLocal,
        figure: per_second,
        wanted: Wanted::AtLeast(0.97),
    },
    Target {
        what: "per second, Highwire ÷ klipper-lb",
        path: Path::Highwire,
        to: Path::Klipper,
        figure: per_second,
        wanted: Wanted::AtLeast(1.15),
    },
];

/// With one exchange at a time.
const DELAYS: [Target; 4] = [
    Target {
        what: "p90, Highwire ÷ NodePort",
        path: Path::Highwire,
        to: Path::NodePort,
        figure: p90,
        wanted: Wanted::AtMost(1.05),
    },
    Target {
        what: "p90, Highwire ÷ NodePort, both with policy Local",
        path: Path::HighwireLocal,
        to: Path::NodePortLocal,
        figure: p90,
        wanted: Wanted::AtMost(1.05),
    },
    Target {
        what: "p99, Highwire ÷ NodePort",
        path: Path::Highwire,
        to: Path::NodePort,
        figure: p99,
        wanted: Wanted::AtMost(1.05),
    },
    Target {
        what: "p99, Highwire ÷ NodePort, both with policy Local",
        path: Path::HighwireLocal,
        to: Path::NodePortLocal,
        figure: p99,
        wanted: Wanted::AtMost(1.05),
    },
];

/// All that was measured.
pub(crate) struct Found {
    /// Of what load is made and answered with.
    pub(crate) versions: String,
    pub(crate) stalls: Stalls,
    /// With as many exchanges as the machine can carry, at several numbers of ports.
    pub(crate) levels: Vec<Level>,
    /// With one exchange at a time.
    pub(crate) alone: Level,
    pub(crate) presence: Exchanged<Presence>,
    pub(crate) streams: Streams<Rounds<Path, Received>>,
}

/// Writes everything down.
pub(crate) fn report(document: &mut Document, found: &Found) -> Result<()> {
    let (levels, alone) = (&found.levels, &found.alone);
    document.paragraph(&format!(
        "One client outside the cluster, two nodes, four Pods with nginx on each, and paths in \
         turn within each round: whatever disturbs the machine disturbs all of them. {}. \
         While exchanges are timed, all programs of the cluster but these are stopped. Client, node and Pods share the \
         processors, and offloads of the veths are off, so rates are those of this machine \
         and only their ratios say something about the paths.",
        found.versions
    ));
    document.paragraph(
        "*klipper-lb* is what K3s ServiceLB and Akrobateo do: the rules of the CNI plugin \
         portmap on the node and of klipper-lb in one Pod. *nginx on the node* forwards HTTP \
         with connections to the Pods kept open, and TCP and UDP streams, without an access log. \
         Ports that are not measured belong to Services of 100 ports with one endpoint \
         and without NodePorts; klipper-lb and nginx have no ports but the measured ones. \
         All paths lead over the first node to its own Pods, but for two: *Highwire without \
         kube-proxy* and *NodePort of the other node* lead over the second to those on it, by as \
         many hops. There the agent runs with `--service-proxy=none`; kube-proxy and portmap have \
         the same rules as on the first, and the same offloads are off. \
         `spread` is the distance of the quartiles as a share of the median.",
    );
    for exchange in [Exchange::Request, Exchange::Connection] {
        document.heading(headline(exchange));
        targets(document, &RATES, levels, exchange)?;
        for level in levels {
            exchanges(document, level, exchange)?;
        }
        plots(document, levels, exchange)?;
    }
    document.heading("One exchange at a time");
    let stalls = found.stalls;
    document.paragraph(&format!(
        "While as much is sent as the machine carries, how long an exchange takes is decided by \
         whom its scheduler lets wait, on whatever path. So delays are \
         compared with one exchange at a time. Even then a percentile says something about the path \
         only if the machine itself stalls less often. A process that did nothing but look at the \
         clock, with all else stopped, was kept from it {:.0} times a second on each processor, for \
         {} of the time and for up to {:.1} ms: where that is about one percent, p99 shows the \
         machine and not the path.",
        stalls.rate,
        percent(stalls.share),
        stalls.longest
    ));
    for exchange in [Exchange::Request, Exchange::Connection] {
        document.paragraph(&format!("**{}**", headline(exchange)));
        targets(document, &DELAYS, std::slice::from_ref(alone), exchange)?;
        exchanges(document, alone, exchange)?;
    }
    document.paragraph(
        "Processor time is that of the whole machine for one exchange. The kernel charges the \
         node's work on a packet (softirq) to whatever process runs, so it can't be separated from the \
         processes' own work in the kernel; *more than straight* is what the path costs \
         beyond the one straight to the Pods. Client and servers are their time in user space.",
    );
    saved(document, levels, alone)?;
    others(document, &found.presence)?;
    bulk(document, &found.streams)
}

pub(crate) fn headline(exchange: Exchange) -> &'static str {
    match exchange {
        Exchange::Request => "Requests on connections that stay open",
        Exchange::Connection => "A new connection for each request",
    }
}

fn targets(
    document: &mut Document,
    targets: &[Target],
    levels: &[Level],
    exchange: Exchange,
) -> Result<()> {
    let mut table = Table::new(&[
        "ratio, round by round",
        "ports",
        "median",
        "quartiles",
        "target",
        "",
    ]);
    for target in targets {
        for level in levels {
            let rounds = level.found.rounds(exchange);
            let ratio = rounds.ratio(target.path, target.to, target.figure)?;
            let reached = target.wanted.allows(ratio.median());
            table.row([
                target.what.to_owned(),
                number(level.ports as f64),
                format!("{:.3}", ratio.median()),
                quartiles(&ratio),
                target.wanted.text(),
                if reached { "reached" } else { "MISSED" }.to_owned(),
            ]);
        }
    }
    document.table(table);
    Ok(())
}

pub(crate) fn quartiles(ratio: &Sample) -> String {
    format!(
        "{:.3} to {:.3}",
        ratio.percentile(0.25),
        ratio.percentile(0.75)
    )
}

fn exchanges(document: &mut Document, level: &Level, exchange: Exchange) -> Result<()> {
    let rounds = level.found.rounds(exchange);
    let straight = microseconds(rounds, Path::Pod)?;
    let mut table = Table::new(&[
        &format!(
            "{} ports, connections at a time: {}",
            number(level.ports as f64),
            level.at_a_time
        ),
        "per second",
        "spread",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "CPU µs",
        "more than straight",
        "client",
        "servers",
    ]);
    for path in Path::ALL {
        let rate = rounds.sample(path, per_second)?;
        let figure = |of: fn(&Exchanges) -> f64| -> Result<String> {
            let sample = rounds.sample(path, |measured| of(&measured.figure))?;
            Ok(number(sample.median()))
        };
        let cpu = |of: fn(&Measured<Exchanges>) -> f64| -> Result<String> {
            let sample = rounds.sample(path, |it| of(it) * 1e6 / it.figure.count)?;
            Ok(format!("{:.1}", sample.median()))
        };
        table.row([
            path.name().to_owned(),
            number(rate.median()),
            percent(rate.spread()),
            figure(|it| it.p50)?,
            figure(|it| it.p90)?,
            figure(|it| it.p99)?,
            figure(|it| it.p999)?,
            cpu(|it| it.cpu.machine)?,
            format!("{:.1}", microseconds(rounds, path)? - straight),
            cpu(|it| it.cpu.client)?,
            cpu(|it| it.cpu.servers)?,
        ]);
    }
    document.table(table);
    Ok(())
}

/// Of the whole machine for an exchange.
fn microseconds(rounds: &Rounds<Path, Exchanges>, path: Path) -> Result<f64> {
    let sample = rounds.sample(path, |it| it.cpu.machine * 1e6 / it.figure.count)?;
    Ok(sample.median())
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn plots(document: &mut Document, levels: &[Level], exchange: Exchange) -> Result<()> {
    let (name, unit) = match exchange {
        Exchange::Request => ("requests", "requests per second"),
        Exchange::Connection => ("connections", "connections per second"),
    };
    let mut plot = Plot::new(
        headline(exchange),
        Axis::logarithmic("ports on the node"),
        Axis::linear(unit),
    );
    for path in Path::ALL {
        let mut points = Vec::new();
        for level in levels {
            let rate = level.found.rounds(exchange).sample(path, per_second)?;
            points.push((level.ports as f64, rate.median()));
        }
        plot.line(path.name(), points);
    }
    document.plot(name, plot);
    Ok(())
}

fn others(document: &mut Document, presence: &Exchanged<Presence>) -> Result<()> {
    document.heading("What Highwire's table costs other traffic");
    document.paragraph(
        "The same NodePort with the table and without (its chains at no hook, the agent \
         stopped), in turn. Packets to a NodePort, like all others, pass the table unchanged.",
    );
    let mut table = Table::new(&[
        "NodePort, with the table ÷ without, round by round",
        "median",
        "quartiles",
    ]);
    for (rounds, unit) in [
        (&presence.requests, "requests"),
        (&presence.connections, "connections"),
    ] {
        for (figure, what) in [(per_second as Figure, "per second"), (p99, "p99")] {
            let ratio = rounds.ratio(Presence::Present, Presence::Absent, figure)?;
            table.row([
                format!("{unit}, {what}"),
                format!("{:.3}", ratio.median()),
                quartiles(&ratio),
            ]);
        }
    }
    document.table(table);
    Ok(())
}

fn bulk(document: &mut Document, streams: &Streams<Rounds<Path, Received>>) -> Result<()> {
    document.heading("One stream as fast as it goes");
    document.paragraph(&format!(
        "By iperf3, one stream, as received. Lost are datagrams that the receiver had no time \
         for. Large datagrams carry {LARGE} bytes, small ones {SMALL}."
    ));
    let mut table = Table::new(&[
        "stream",
        "TCP Gbit/s",
        "spread",
        "UDP Gbit/s",
        "spread",
        "lost",
        "small UDP packets/s",
        "spread",
        "lost",
    ]);
    for path in Path::POLICY_CLUSTER {
        let tcp = streams
            .tcp
            .sample(path, |it| it.figure.bits_per_second / 1e9)?;
        let large = streams
            .large
            .sample(path, |it| it.figure.bits_per_second / 1e9)?;
        let small = streams
            .small
            .sample(path, |it| it.figure.packets_per_second)?;
        let lost = |of: &Rounds<Path, Received>| of.sample(path, |it| it.figure.lost);
        table.row([
            path.name().to_owned(),
            number(tcp.median()),
            percent(tcp.spread()),
            number(large.median()),
            percent(large.spread()),
            percent(lost(&streams.large)?.median()),
            number(small.median()),
            percent(small.spread()),
            percent(lost(&streams.small)?.median()),
        ]);
    }
    document.table(table);
    let mut table = Table::new(&["Highwire ÷ NodePort, round by round", "median", "quartiles"]);
    let tcp = streams.tcp.ratio(Path::Highwire, Path::NodePort, |it| {
        it.figure.bits_per_second
    })?;
    let large = streams.large.ratio(Path::Highwire, Path::NodePort, |it| {
        it.figure.bits_per_second
    })?;
    let small = streams.small.ratio(Path::Highwire, Path::NodePort, |it| {
        it.figure.packets_per_second
    })?;
    for (what, ratio) in [("TCP", tcp), ("UDP", large), ("small UDP packets", small)] {
        table.row([
            what.to_owned(),
            format!("{:.3}", ratio.median()),
            quartiles(&ratio),
        ]);
    }
    document.table(table);
    Ok(())
}

impl<T> Streams<T> {
    /// Measures all of them, one after the other.
    pub(crate) fn run(measure: impl Fn(Stream) -> Result<T>) -> Result<Self> {
        Ok(Self {
            tcp: measure(Stream::Tcp)?,
            large: measure(Stream::Udp(LARGE))?,
            small: measure(Stream::Udp(SMALL))?,
        })
    }
}
