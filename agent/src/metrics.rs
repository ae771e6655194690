//! The agent's metrics.

use highwire_api::node::{Conflict, ConflictReason};
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

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
    /// Failed writes of the status or the Lease, by object.
    pub report_errors: IntCounterVec,
    /// Stale UDP flows that were deleted.
    pub udp_flows_deleted: IntCounter,
    /// Conntrack entries that could not be read and were passed over.
    pub udp_flows_unreadable: IntCounter,
    udp_sweeps: IntCounterVec,
    /// Services this node forwards.
    pub services: IntGauge,
    /// Ports this node forwards.
    pub ports: IntGauge,
    /// Whether this node forwards.
    pub ready: IntGauge,
    /// Every Service event up to this version is in the kernel.
    pub observed: IntGauge,
    /// Ports that kube-proxy has yet to program.
    pub awaited: IntGauge,
    conflicts: IntGaugeVec,
    applies: IntCounterVec,
    elements: IntCounter,
    apply_bytes: IntCounter,
    apply_seconds: Histogram,
    connections: IntGaugeVec,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// If two had the same name, which a test rules out.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let name = |suffix: &str| format!("highwire_agent_{suffix}");
        let gauge = |suffix, help| add(&registry, IntGauge::new(name(suffix), help));
        let counter = |suffix, help| add(&registry, IntCounter::new(name(suffix), help));
        let counters = |suffix, help, labels: &[&str]| {
            add(
                &registry,
                IntCounterVec::new(Opts::new(name(suffix), help), labels),
            )
        };
        let seconds = HistogramOpts::new(
            name("apply_seconds"),
            "Duration of one nftables transaction",
        )
        .buckets(vec![
            0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0,
        ]);
        Ok(Self {
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
            conflicts: add(
                &registry,
                IntGaugeVec::new(
                    Opts::new(name("conflicts"), "Ports refused to a Service on this node"),
                    &["reason"],
                ),
            )?,
            ready: gauge("ready", "Whether this node forwards (1) or not (0)")?,
            observed: gauge(
                "observed_resource_version",
                "Every Service event up to this version is in the kernel",
            )?,
            awaited: gauge(
                "awaited_ports",
                "Ports that kube-proxy has yet to program before they are advertised",
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
            apply_seconds: add(&registry, Histogram::with_opts(seconds))?,
            connections: add(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        name("connections"),
                        "New connections since the table was built, by what became of them",
                    ),
                    &["outcome"],
                ),
            )?,
            registry,
        })
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
        let result = if bytes.is_some() { "ok" } else { "error" };
        self.applies.with_label_values(&[kind, result]).inc();
        self.apply_seconds.observe(seconds);
        if let Some(bytes) = bytes {
            let number = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
            self.elements.inc_by(number(elements));
            self.apply_bytes.inc_by(number(bytes));
        }
    }

    /// Counts a sweep of the UDP flows.
    pub fn udp_swept(&self, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.udp_sweeps.with_label_values(&[result]).inc();
    }

    /// Shows the kernel's counters of new connections.
    pub fn show_connections(&self, counters: &[(String, u64)]) {
        for (outcome, packets) in counters {
            let packets = i64::try_from(*packets).unwrap_or(i64::MAX);
            self.connections.with_label_values(&[outcome]).set(packets);
        }
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
        let names: Vec<_> = metrics
            .registry
            .gather()
            .iter()
            .map(|family| family.name().to_owned())
            .collect();
        assert!(
            names.iter().all(|name| name.starts_with("highwire_agent_")),
            "{names:?}"
        );
        assert!(names.contains(&"highwire_agent_watch_errors_total".to_owned()));
    }
}
