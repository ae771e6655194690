//! The controller's metrics.

use std::{collections::BTreeMap, time::Duration};

use highwire_runtime::{
    heartbeat::Heartbeat,
    metrics::{LastTime, add_build_info, add_connection, process::ProcessMetrics},
    watch::WatchHealth,
};
use prometheus::{
    Histogram, IntCounter, IntCounterVec, IntGaugeVec, Registry, register_histogram_with_registry,
    register_int_counter_vec_with_registry, register_int_counter_with_registry,
    register_int_gauge_vec_with_registry,
};

use crate::{
    decision::{conditions::reasons, eligibility::Node},
    external::updater::Method,
    facts::service::ServiceFacts,
    queue::Depth,
};

/// What the names of all metrics but those of the process begin with.
const PREFIX: &str = "highwire_controller";

/// All metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where they are gathered from.
    pub registry: Registry,
    /// Failed watches by kind.
    pub watch_errors: IntCounterVec,
    /// When this controller last took or renewed the Lease of the leader.
    pub lease_renewed: LastTime,
    /// Changes of the leader that this controller has seen.
    pub leader_changes: IntCounter,
    leader: IntGaugeVec,
    queue_depth: IntGaugeVec,
    decision_seconds: Histogram,
    status_writes: IntCounterVec,
    events: IntCounterVec,
    services: IntGaugeVec,
    nodes: IntGaugeVec,
    conflicts: IntGaugeVec,
    first_address: Histogram,
    box_requests: IntCounterVec,
}

/// The results [`Metrics::status_write`] is given.
const WRITE_RESULTS: [&str; 4] = ["ok", "conflict", "gone", "error"];

/// How a request to a box ends.
const BOX_RESULTS: [&str; 2] = ["ok", "error"];

/// How the sending of an Event ended.
#[derive(Clone, Copy, Debug)]
pub enum Sending {
    /// It was created.
    Sent,
    /// The API server had it already, from before a restart or by another leader.
    Known,
    /// The API server refused it or did not answer.
    Failed,
    /// Too many were waiting.
    Dropped,
}

impl Sending {
    fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Known => "known",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// If two had the same name, which a test rules out.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let name = |suffix: &str| format!("{PREFIX}_{suffix}");
        let counters = |suffix: &str, help: &str, labels: &[&str]| {
            register_int_counter_vec_with_registry!(name(suffix), help, labels, registry)
        };
        let gauges = |suffix: &str, help: &str, labels: &[&str]| {
            register_int_gauge_vec_with_registry!(name(suffix), help, labels, registry)
        };
        add_build_info(&registry, &name("build_info"), env!("CARGO_PKG_VERSION"))?;
        registry.register(Box::new(ProcessMetrics::new()?))?;
        let metrics = Self {
            watch_errors: counters("watch_errors_total", "Failed watches", &["kind"])?,
            leader: gauges(
                "leader",
                "Whether this controller leads (1) or not (0)",
                &[],
            )?,
            lease_renewed: LastTime::new(
                &registry,
                &name("lease_renewed_timestamp_seconds"),
                "When this controller last took or renewed the leader's Lease; 0 if it has not",
            )?,
            leader_changes: register_int_counter_with_registry!(
                name("leader_changes_total"),
                "Changes of the leader that this controller has seen",
                registry
            )?,
            queue_depth: gauges(
                "queue_depth",
                "Services to decide about: now, later, or once a write of theirs has ended",
                &["state"],
            )?,
            decision_seconds: register_histogram_with_registry!(
                name("decision_seconds"),
                "Duration of the decisions about the Services that are due, until one is to be \
                 written",
                vec![
                    0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.02, 0.1
                ],
                registry
            )?,
            status_writes: counters(
                "status_writes_total",
                "Writes of a Service's status, by how they ended",
                &["result"],
            )?,
            events: counters(
                "events_total",
                "Kubernetes Events for Services, by reason and by how their sending ended",
                &["reason", "result"],
            )?,
            services: gauges("services", "Services of ours by state", &["state"])?,
            nodes: gauges(
                "nodes",
                "Nodes by whether they can be advertised",
                &["state"],
            )?,
            conflicts: gauges(
                "conflicts",
                "Services that are refused a port on some node, by reason",
                &["reason"],
            )?,
            first_address: register_histogram_with_registry!(
                name("first_address_seconds"),
                "Time from a new Service to the first address in its status",
                vec![0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0],
                registry
            )?,
            box_requests: counters(
                "box_requests_total",
                "Requests to boxes outside the cluster, by method and by how they ended",
                &["method", "result"],
            )?,
            registry,
        };
        metrics.leads(false);
        metrics.queue_depth(Depth::default());
        metrics.states([].into_iter(), [].into_iter());
        metrics.conflicts([].into_iter());
        // A rate needs a zero to start from.
        for result in WRITE_RESULTS {
            metrics.status_writes.with_label_values(&[result]);
        }
        for method in [Method::Post, Method::Delete] {
            for result in BOX_RESULTS {
                let labels = [method.as_str(), result];
                metrics.box_requests.with_label_values(&labels);
            }
        }
        Ok(metrics)
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

    /// How many Services are in the queue.
    pub fn queue_depth(&self, depth: Depth) {
        for (state, services) in depth.states() {
            let services = i64::try_from(services).unwrap_or(i64::MAX);
            self.queue_depth.with_label_values(&[state]).set(services);
        }
    }

    /// Decisions took so long.
    pub fn decided(&self, took: Duration) {
        self.decision_seconds.observe(took.as_secs_f64());
    }

    /// A box has taken a request, or not.
    pub fn box_request(&self, method: Method, is_taken: bool) {
        let result = BOX_RESULTS[usize::from(!is_taken)];
        let labels = [method.as_str(), result];
        self.box_requests.with_label_values(&labels).inc();
    }

    /// Leadership was won or lost.
    pub fn leads(&self, leading: bool) {
        self.leader
            .with_label_values::<&str>(&[])
            .set(leading.into());
    }

    /// A write of a status ended.
    pub fn status_write(&self, result: &'static str) {
        self.status_writes.with_label_values(&[result]).inc();
    }

    /// The sending of an Event ended.
    pub fn event(&self, reason: &'static str, sending: Sending) {
        self.events
            .with_label_values(&[reason, sending.label()])
            .inc();
    }

    /// A new Service got its first address.
    pub fn first_address(&self, took: Duration) {
        self.first_address.observe(took.as_secs_f64());
    }

    /// The states of all Services and nodes.
    pub fn states(
        &self,
        services: impl Iterator<Item = &'static str>,
        nodes: impl Iterator<Item = &'static str>,
    ) {
        count(&self.services, ServiceFacts::STATES, services);
        count(&self.nodes, Node::STATES, nodes);
    }

    /// Why Services are refused a port, one reason for each.
    pub fn conflicts(&self, found: impl Iterator<Item = &'static str>) {
        count(&self.conflicts, reasons(), found);
    }
}

/// Sets the gauge of every state, also of those that do not occur.
fn count(
    gauges: &IntGaugeVec,
    all: impl IntoIterator<Item = &'static str>,
    found: impl Iterator<Item = &'static str>,
) {
    let mut counts: BTreeMap<&str, i64> = all.into_iter().map(|state| (state, 0)).collect();
    found.for_each(|state| *counts.entry(state).or_default() += 1);
    for (state, count) in counts {
        gauges.with_label_values(&[state]).set(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_lead_says_so_from_the_start() {
        let all = Metrics::new().unwrap().registry.gather();
        let leader = all
            .iter()
            .find(|it| it.name() == "highwire_controller_leader");
        let value =
            |of: &prometheus::proto::MetricFamily| of.get_metric()[0].get_gauge().get_value();
        assert_eq!(leader.map(value), Some(0.0));
    }

    #[test]
    fn what_alerts_ask_for_is_there_before_anything_has_happened() {
        let metrics = Metrics::new().unwrap();
        let health = WatchHealth::new(metrics.watch_errors.clone());
        metrics
            .add_connection(&health, &Heartbeat::default())
            .unwrap();
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&metrics.registry.gather())
            .unwrap();
        for series in [
            "leader 0",
            "leader_changes_total 0",
            "lease_renewed_timestamp_seconds 0",
            "queue_depth{state=\"due\"} 0",
            "status_writes_total{result=\"error\"} 0",
            "nodes{state=\"out\"} 0",
            "conflicts{reason=\"HostListener\"} 0",
            "decision_seconds_count 0",
            concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            let line = format!("\n{PREFIX}_{series}\n");
            assert!(text.contains(&line), "{series}: {text}");
        }
        assert!(text.contains("\nhighwire_controller_api_server_silence_seconds "));
        assert!(text.contains("\nprocess_resident_memory_bytes "));
        metrics.queue_depth(Depth {
            due: 1,
            later: 2,
            writing: 3,
        });
        let depth = |state: &str| metrics.queue_depth.with_label_values(&[state]).get();
        assert_eq!((depth("due"), depth("later"), depth("writing")), (1, 2, 3));
        metrics.decided(Duration::from_millis(2));
        let sum = metrics.decision_seconds.get_sample_sum();
        assert!((sum - 0.002).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn every_state_is_a_series() {
        let metrics = Metrics::new().unwrap();
        metrics.states(["served", "served"].into_iter(), ["live"].into_iter());
        let gauge = |state: &str| metrics.services.with_label_values(&[state]).get();
        assert_eq!((gauge("served"), gauge("unserved")), (2, 0));
        metrics.states([].into_iter(), [].into_iter());
        assert_eq!(gauge("served"), 0);
        metrics.conflicts(["HostListener"].into_iter());
        let conflicts = |reason: &str| metrics.conflicts.with_label_values(&[reason]).get();
        assert_eq!((conflicts("HostListener"), conflicts("HostPort")), (1, 0));
    }
}
