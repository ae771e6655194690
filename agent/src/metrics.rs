//! The agent's metrics.

use std::time::Duration;

use highwire_api::node::{Conflict, ConflictReason};
use highwire_runtime::{
    heartbeat::Heartbeat,
    metrics::{LastTime, add_build_info, add_connection, process::ProcessMetrics},
    watch::WatchHealth,
};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};
use tokio::task::spawn_blocking;

use crate::{decide::Readiness, table::connections::Connections};

/// What the names of all metrics but those of the process begin with.
const PREFIX: &str = "highwire_agent";

/// What the agent writes to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// The report of a node.
    LoadBalancerNode,
    /// The Lease of a node or a box.
    Lease,
    /// A condition that a box writes.
    LoadBalancer,
}

impl Reported {
    const ALL: [Self; 3] = [Self::LoadBalancerNode, Self::Lease, Self::LoadBalancer];

    /// The kind of the object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoadBalancerNode => "LoadBalancerNode",
            Self::Lease => "Lease",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// The results of a transaction, as labels.
const RESULTS: [&str; 2] = ["ok", "error"];

/// All metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where they are gathered from.
    pub registry: Registry,
    /// Failed watches by kind.
    pub watch_errors: IntCounterVec,
    /// Times our table was found changed by somebody else and was put back.
    pub drift_repairs: IntCounter,
    /// Times the table was read because another program may have changed it, by what
    /// was found.
    pub drift_checks: IntCounterVec,
    /// Stale UDP flows that were deleted.
    pub udp_flows_deleted: IntCounter,
    /// Conntrack entries that could not be read and were passed over.
    pub udp_flows_unreadable: IntCounter,
    udp_sweeps: IntCounterVec,
    /// Services this node forwards.
    pub services: IntGauge,
    /// Ports this node forwards.
    pub ports: IntGauge,
    /// Every Service event up to this version is in the kernel.
    pub observed: IntGauge,
    /// Ports that wait for kube-proxy, or for their Service's first EndpointSlice.
    pub awaited: IntGauge,
    /// New connections.
    pub connections: Connections,
    /// When the Lease was last renewed.
    pub lease_renewed: LastTime,
    /// For how many seconds a renewal is good.
    pub lease_duration: Gauge,
    ready: IntGauge,
    not_ready: IntGaugeVec,
    report_errors: IntCounterVec,
    conflicts: IntGaugeVec,
    /// Transactions, by kind and result.
    pub applies: IntCounterVec,
    last_apply: LastTime,
    elements: IntCounter,
    apply_bytes: IntCounter,
    apply_seconds: Histogram,
    decision_seconds: Histogram,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// If two had the same name, which a test rules out.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let name = |suffix: &str| format!("{PREFIX}_{suffix}");
        let gauge = |suffix, help| add(&registry, IntGauge::new(name(suffix), help));
        let counter = |suffix, help| add(&registry, IntCounter::new(name(suffix), help));
        let counters = |suffix, help, labels: &[&str]| {
            add(
                &registry,
                IntCounterVec::new(Opts::new(name(suffix), help), labels),
            )
        };
        let gauges = |suffix, help, labels: &[&str]| {
            add(
                &registry,
                IntGaugeVec::new(Opts::new(name(suffix), help), labels),
            )
        };
        let seconds = |suffix, help, buckets: &[f64]| {
            let options = HistogramOpts::new(name(suffix), help).buckets(buckets.to_vec());
            add(&registry, Histogram::with_opts(options))
        };
        let time = |suffix, help| LastTime::new(&registry, &name(suffix), help);
        add_build_info(&registry, &name("build_info"), env!("CARGO_PKG_VERSION"))?;
        registry.register(Box::new(ProcessMetrics::new()?))?;
        let metrics = Self {
            watch_errors: counters("watch_errors_total", "Failed watches", &["kind"])?,
            drift_repairs: counter(
                "drift_repairs_total",
                "Times the table was changed by another program and put back",
            )?,
            drift_checks: counters(
                "drift_checks_total",
                "Times the table was read because another program may have changed it",
                &["result"],
            )?,
            report_errors: counters("report_errors_total", "Failed API writes", &["object"])?,
            udp_flows_deleted: counter(
                "udp_flows_deleted_total",
                "Conntrack entries of UDP flows that went nowhere any more, deleted",
            )?,
            udp_flows_unreadable: counter(
                "udp_flows_unreadable_total",
                "Conntrack entries that could not be read and were passed over",
            )?,
            udp_sweeps: counters(
                "udp_sweeps_total",
                "Sweeps of the UDP flows of served ports",
                &["result"],
            )?,
            services: gauge("services", "Services this node forwards")?,
            ports: gauge("ports", "Ports this node forwards")?,
            conflicts: gauges(
                "conflicts",
                "Ports refused to a Service on this node",
                &["reason"],
            )?,
            ready: gauge("ready", "Whether this node forwards (1) or not (0)")?,
            not_ready: gauges(
                "not_ready",
                "1 for the reason for which this node does not forward, 0 for the others",
                &["reason"],
            )?,
            observed: gauge(
                "observed_resource_version",
                "Every Service event up to this version is in the kernel",
            )?,
            awaited: gauge(
                "awaited_ports",
                "Ports that are not advertised yet: kube-proxy, or their Service's first EndpointSlice, has yet to come",
            )?,
            applies: counters(
                "applies_total",
                "nftables transactions",
                &["kind", "result"],
            )?,
            apply_bytes: counter(
                "apply_bytes_total",
                "Bytes given to nft or the kernel for transactions",
            )?,
            elements: counter("elements_changed_total", "nft elements added or deleted")?,
            apply_seconds: seconds(
                "apply_seconds",
                "Duration of one nftables transaction",
                &[
                    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0,
                ],
            )?,
            last_apply: time(
                "last_apply_timestamp_seconds",
                "When an nftables transaction last succeeded; 0 if none has",
            )?,
            decision_seconds: seconds(
                "decision_seconds",
                "Duration of one decision about all Services",
                &[
                    0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5,
                ],
            )?,
            lease_renewed: time(
                "lease_renewed_timestamp_seconds",
                "When this agent last renewed its Lease; 0 if it has not",
            )?,
            lease_duration: add(
                &registry,
                Gauge::new(
                    name("lease_duration_seconds"),
                    "For how long a renewal of the Lease is good",
                ),
            )?,
            connections: Connections::new(&registry, &name("connections_total"))?,
            registry: registry.clone(),
        };
        metrics.start_at_zero();
        Ok(metrics)
    }

    /// Shows what can be shown before anything has happened: a rate needs a zero to start
    /// from.
    fn start_at_zero(&self) {
        for result in RESULTS {
            for kind in ["replace", "refill", "change"] {
                self.applies.with_label_values(&[kind, result]);
            }
            self.udp_sweeps.with_label_values(&[result]);
        }
        for object in Reported::ALL {
            self.report_errors.with_label_values(&[object.as_str()]);
        }
        for result in ["same", "changed", "error"] {
            self.drift_checks.with_label_values(&[result]);
        }
        for reason in Readiness::TROUBLES {
            self.not_ready.with_label_values(&[reason]);
        }
        self.show_conflicts(&[]);
    }

    /// Adds what is known of the connection to the API server.
    ///
    /// # Errors
    /// If that was added before.
    pub fn add_connection(
        &self,
        health: &WatchHealth,
        heard: &Heartbeat,
    ) -> prometheus::Result<()> {
        add_connection(&self.registry, PREFIX, health, heard)
    }

    /// Shows whether the node forwards, and if not, why.
    pub fn show_readiness(&self, readiness: &Readiness) {
        self.ready.set(readiness.is_ready().into());
        for reason in Readiness::TROUBLES {
            let is_it = readiness.reason() == reason;
            self.not_ready
                .with_label_values(&[reason])
                .set(is_it.into());
        }
    }

    /// Counts a write that failed.
    pub fn report_failed(&self, object: Reported) {
        self.report_errors
            .with_label_values(&[object.as_str()])
            .inc();
    }

    /// A decision took so long.
    pub fn decided(&self, took: Duration) {
        self.decision_seconds.observe(took.as_secs_f64());
    }

    /// Shows how many refused ports have each reason.
    pub fn show_conflicts(&self, conflicts: &[Conflict]) {
        for reason in ConflictReason::ALL {
            let refused = conflicts.iter().filter(|c| c.reason == reason).count();
            let gauge = self.conflicts.with_label_values(&[reason.as_str()]);
            gauge.set(count(refused));
        }
    }

    /// Counts a transaction of that kind which took `seconds`; `bytes` if it succeeded.
    pub fn applied(&self, kind: &str, elements: usize, bytes: Option<usize>, seconds: f64) {
        let result = RESULTS[usize::from(bytes.is_none())];
        self.applies.with_label_values(&[kind, result]).inc();
        self.apply_seconds.observe(seconds);
        if let Some(bytes) = bytes {
            self.last_apply.note();
            let number = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
            self.elements.inc_by(number(elements));
            self.apply_bytes.inc_by(number(bytes));
        }
    }

    /// Counts a sweep of the UDP flows.
    pub fn udp_swept(&self, ok: bool) {
        let result = RESULTS[usize::from(!ok)];
        self.udp_sweeps.with_label_values(&[result]).inc();
    }

    /// Reads the kernel's counters of new connections. What cannot be read now is read the
    /// next time.
    pub async fn read_connections(&self) {
        let connections = self.connections.clone();
        let _ = spawn_blocking(move || connections.read()).await;
    }
}

/// A number of things as a gauge takes it.
#[must_use]
pub fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = collector?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_used_once() {
        let metrics = Metrics::new().unwrap();
        metrics.watch_errors.with_label_values(&["Service"]).inc();
        let names = names(&metrics);
        let is_ours = |name: &str| name.starts_with(PREFIX) || name.starts_with("process_");
        assert!(names.iter().all(|name| is_ours(name)), "{names:?}");
        assert!(names.contains(&"highwire_agent_watch_errors_total".to_owned()));
    }

    fn names(metrics: &Metrics) -> Vec<String> {
        let all = metrics.registry.gather();
        all.iter().map(|family| family.name().to_owned()).collect()
    }

    fn text(metrics: &Metrics) -> String {
        let encoder = prometheus::TextEncoder::new();
        encoder
            .encode_to_string(&metrics.registry.gather())
            .unwrap()
    }

    #[test]
    fn what_alerts_ask_for_is_there_before_anything_has_happened() {
        let text = text(&Metrics::new().unwrap());
        for series in [
            "applies_total{kind=\"replace\",result=\"error\"} 0",
            "report_errors_total{object=\"Lease\"} 0",
            "conflicts{reason=\"HostListener\"} 0",
            "connections_total{outcome=\"rewrite\"} 0",
            "last_apply_timestamp_seconds 0",
            "lease_renewed_timestamp_seconds 0",
            concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(
                text.contains(&format!("\n{PREFIX}_{series}\n")),
                "{series}: {text}"
            );
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "));
    }

    #[test]
    fn one_reason_at_most_is_shown() {
        let metrics = Metrics::new().unwrap();
        let shown = |reason: &str| metrics.not_ready.with_label_values(&[reason]).get();
        metrics.show_readiness(&Readiness::ApplyFailed("no nft".to_owned()));
        assert_eq!(metrics.ready.get(), 0);
        assert_eq!((shown("ApplyFailed"), shown("NoAddresses")), (1, 0));
        metrics.show_readiness(&Readiness::Programmed);
        assert_eq!(metrics.ready.get(), 1);
        assert_eq!((shown("ApplyFailed"), shown("NoAddresses")), (0, 0));
    }

    #[test]
    fn only_a_transaction_that_succeeded_is_the_last_one() {
        let metrics = Metrics::new().unwrap();
        metrics.applied("replace", 3, None, 0.1);
        assert_eq!(metrics.last_apply.get(), 0.0);
        metrics.applied("replace", 3, Some(99), 0.1);
        assert!(metrics.last_apply.get() > 0.0);
    }

    #[test]
    fn a_decision_is_counted_with_its_time() {
        let metrics = Metrics::new().unwrap();
        metrics.decided(Duration::from_millis(3));
        let seconds = &metrics.decision_seconds;
        assert_eq!(seconds.get_sample_count(), 1);
        assert!((seconds.get_sample_sum() - 0.003).abs() < 1e-9);
    }

    #[test]
    fn the_connection_is_shown_once_it_is_there() {
        let metrics = Metrics::new().unwrap();
        let health = WatchHealth::new(metrics.watch_errors.clone());
        metrics
            .add_connection(&health, &Heartbeat::default())
            .unwrap();
        assert!(names(&metrics).contains(&"highwire_agent_api_server_silence_seconds".to_owned()));
    }
}
