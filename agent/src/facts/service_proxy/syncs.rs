//! When kube-proxy programmed the kernel, how long that took, and whether it has more to
//! program: by its metrics
//! (Kubernetes pkg/proxy/metrics/metrics.go; with a family since 1.33 at the latest).

use std::time::Duration;

use highwire_api::Family;
use jiff::Timestamp;

/// How kube-proxy's syncs went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Syncs {
    queued: Samples,
    last: Samples,
    spent: Samples,
}

/// Values by family, as kube-proxy calls it; it is empty if it names none.
type Samples = Vec<(String, f64)>;

impl Syncs {
    /// Reads the metrics; `None` if they say nothing of syncs.
    #[must_use]
    pub fn parse(metrics: &str) -> Option<Self> {
        let syncs = Self {
            queued: samples(
                metrics,
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            ),
            last: samples(metrics, "kubeproxy_sync_proxy_rules_last_timestamp_seconds"),
            spent: samples(metrics, "kubeproxy_sync_proxy_rules_duration_seconds_sum"),
        };
        (!syncs.last.is_empty()).then_some(syncs)
    }

    /// When the last change of this family came that was to be programmed.
    #[must_use]
    pub fn queued(&self, family: Family) -> Option<Timestamp> {
        of(&self.queued, family).and_then(timestamp)
    }

    /// When this family was last programmed.
    #[must_use]
    pub fn last(&self, family: Family) -> Option<Timestamp> {
        of(&self.last, family).and_then(timestamp)
    }

    /// How long all syncs of this family took together, since kube-proxy started.
    #[must_use]
    pub fn spent(&self, family: Family) -> Option<Duration> {
        Duration::try_from_secs_f64(of(&self.spent, family)?).ok()
    }
}

fn of(samples: &Samples, family: Family) -> Option<f64> {
    let name = family.to_string();
    let found = samples.iter().find(|(of, _)| of.is_empty() || *of == name);
    found.map(|(_, value)| *value)
}

/// From seconds since 1970.
fn timestamp(seconds: f64) -> Option<Timestamp> {
    // Microseconds are more than kube-proxy's clock and a float of this size give.
    Timestamp::from_microsecond((seconds * 1e6) as i64).ok()
}

/// The samples of a metric (Prometheus text format): `name{ip_family="IPv4"} 1.7e+09`.
fn samples(metrics: &str, name: &str) -> Samples {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let sample = |line: &str| {
        let (labels, value) = line.rsplit_once(' ')?;
        let family = labels.split('"').nth(1).unwrap_or_default();
        Some((family.to_owned(), value.parse().ok()?))
    };
    lines.filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_read_by_family() {
        // As kube-proxy 1.36.3 writes them.
        let syncs = Syncs::parse(
            "# TYPE kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds gauge\n\
             kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} \
             1.7952956674196968e+09\n\
             kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} \
             1.7952956677174904e+09\n\
             kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} \
             1.795295668e+09\n\
             kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.001\"} 0\n\
             kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 0.25\n\
             kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 3\n",
        )
        .unwrap();
        let at = |time: &str| Some(time.parse().unwrap());
        assert_eq!(syncs.queued(Family::V4), at("2026-11-21T21:14:27.419696Z"));
        assert_eq!(syncs.last(Family::V4), at("2026-11-21T21:14:27.717490Z"));
        assert_eq!(syncs.last(Family::V6), at("2026-11-21T21:14:28Z"));
        assert_eq!(syncs.queued(Family::V6), None);
        assert_eq!(syncs.spent(Family::V4), Some(Duration::from_millis(250)));
        assert_eq!(syncs.spent(Family::V6), None);
        assert_eq!(Syncs::parse("nftables"), None);
    }

    #[test]
    fn without_a_family_they_are_of_both() {
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        let syncs = Syncs::parse(&format!("{name} 1.795295668e+09\n")).unwrap();
        for family in Family::ALL {
            assert!(syncs.last(family).is_some());
        }
    }
}
