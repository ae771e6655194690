//! What the API server says of itself: its metrics before and after.

use std::collections::BTreeMap;

use anyhow::Result;
use kube::Client;
use serde::{Deserialize, Serialize};

/// Samples of metrics in Prometheus' text format, those that are read here only.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<Sample>);

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// The metrics that are read; the API server has 30,000 others.
const READ: [&str; 7] = [
    "apiserver_request_total",
    "apiserver_response_sizes_sum",
    "apiserver_request_body_size_bytes_sum",
    "apiserver_watch_events_total",
    "apiserver_watch_events_sizes_sum",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
];

impl Samples {
    /// Reads the text; lines of other metrics are passed over.
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(Sample::parse).collect())
    }

    /// The sum of a metric over all samples with these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            let wanted = labels.iter();
            sample.name == name && { wanted }.all(|(label, value)| sample.label(label) == *value)
        };
        self.0.iter().filter(has).map(|sample| sample.value).sum()
    }

    fn by(&self, name: &str, key: impl Fn(&Sample) -> Option<String>) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.0.iter().filter(|sample| sample.name == name) {
            if let Some(key) = key(sample) {
                *sums.entry(key).or_default() += sample.value;
            }
        }
        sums
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let name = line.split(['{', ' ']).next()?;
        if !READ.contains(&name) {
            return None;
        }
        let (head, value) = line.rsplit_once(' ')?;
        let labels = head.get(name.len()..)?.trim_matches(['{', '}']);
        let pairs = labels.split("\",").filter_map(|pair| {
            let (label, value) = pair.split_once("=\"")?;
            Some((label.to_owned(), value.trim_end_matches('"').to_owned()))
        });
        Some(Self {
            name: name.to_owned(),
            labels: pairs.collect(),
            value: value.parse().ok()?,
        })
    }

    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Requests of one verb to one resource.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Requests {
    /// How many.
    pub(super) count: f64,
    /// Bytes of their answers.
    pub(super) answered: f64,
}

/// What the API server has done so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ApiServer {
    /// Writes by verb and resource: `PATCH services/status`.
    pub(super) writes: BTreeMap<String, Requests>,
    /// Bytes of the bodies of writes: `patch services` with those of its status.
    pub(super) written: BTreeMap<String, f64>,
    /// Events to all watchers, by resource, and their bytes.
    pub(super) watched: BTreeMap<String, (f64, f64)>,
}

impl ApiServer {
    /// Asks it.
    pub(super) async fn read(client: &Client) -> Result<Self> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        Ok(Self::of(&Samples::parse(
            &client.request_text(request).await?,
        )))
    }

    fn of(samples: &Samples) -> Self {
        let counts = samples.by("apiserver_request_total", write);
        let mut answers = samples.by("apiserver_response_sizes_sum", write);
        let writes = counts.into_iter().map(|(key, count)| {
            let answered = answers.remove(&key).unwrap_or_default();
            (key, Requests { count, answered })
        });
        let verb_and_resource = |sample: &Sample| {
            let labels = ["verb", "resource"].map(|label| sample.label(label));
            Some(labels.join(" "))
        };
        let kind = |sample: &Sample| {
            let kind = ["resource", "kind"].map(|label| sample.label(label));
            kind.into_iter()
                .find(|it| !it.is_empty())
                .map(str::to_owned)
        };
        let events = samples.by("apiserver_watch_events_total", kind);
        let mut sizes = samples.by("apiserver_watch_events_sizes_sum", kind);
        let watched = events.into_iter().map(|(key, events)| {
            let bytes = sizes.remove(&key).unwrap_or_default();
            (key, (events, bytes))
        });
        Self {
            writes: writes.collect(),
            written: samples.by("apiserver_request_body_size_bytes_sum", verb_and_resource),
            watched: watched.collect(),
        }
    }

    /// What it has done since `before`. One that was started since had done nothing.
    pub(super) fn since(&self, before: &Self) -> Self {
        let is_new = total(self) < total(before);
        let before = if is_new { &Self::default() } else { before };
        let writes = self.writes.iter().map(|(key, now)| {
            let then = before.writes.get(key).copied().unwrap_or_default();
            let since = Requests {
                count: now.count - then.count,
                answered: now.answered - then.answered,
            };
            (key.clone(), since)
        });
        let written = self.written.iter().map(|(key, now)| {
            let then = before.written.get(key).copied().unwrap_or_default();
            (key.clone(), now - then)
        });
        let watched = self.watched.iter().map(|(key, now)| {
            let then = before.watched.get(key).copied().unwrap_or_default();
            (key.clone(), (now.0 - then.0, now.1 - then.1))
        });
        Self {
            writes: writes.filter(|(_, it)| it.count > 0.0).collect(),
            written: written.filter(|(_, it)| *it > 0.0).collect(),
            watched: watched.filter(|(_, it)| it.0 > 0.0).collect(),
        }
    }

    /// Bytes of the bodies of writes of a verb to a resource: `patch services`.
    pub(super) fn sent(&self, write: &str) -> f64 {
        self.written.get(write).copied().unwrap_or(f64::NAN)
    }

    /// How many writes of that verb and resource.
    pub(super) fn count(&self, write: &str) -> f64 {
        self.writes.get(write).map_or(0.0, |it| it.count)
    }
}

fn total(of: &ApiServer) -> f64 {
    of.writes.values().map(|it| it.count).sum()
}

/// The verb and resource of a request that writes and was carried out.
fn write(sample: &Sample) -> Option<String> {
    let verb = sample.label("verb");
    let code = sample.label("code");
    let is_write = [
        "POST",
        "PUT",
        "PATCH",
        "APPLY",
        "DELETE",
        "DELETECOLLECTION",
    ]
    .contains(&verb);
    // Sizes of answers have no code.
    let succeeded = code.is_empty() || code.starts_with('2');
    let (resource, subresource) = (sample.label("resource"), sample.label("subresource"));
    let separator = if subresource.is_empty() { "" } else { "/" };
    let is_resource = !resource.is_empty() && !resource.ends_with("reviews");
    (is_write && succeeded && is_resource)
        .then(|| format!("{verb} {resource}{separator}{subresource}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"# HELP apiserver_request_total x
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="services",scope="resource",subresource="status",verb="PATCH",version="v1"} 5
apiserver_request_total{code="409",component="apiserver",group="",resource="services",subresource="status",verb="PATCH",version="v1"} 7
apiserver_request_total{code="200",group="",resource="services",subresource="",verb="LIST",version="v1"} 9
apiserver_response_sizes_sum{group="",resource="services",subresource="status",verb="PATCH"} 1000
process_cpu_seconds_total 3
"#;

    #[test]
    fn writes_that_were_carried_out_are_counted_by_verb_and_resource() {
        let before = ApiServer::of(&Samples::parse(BEFORE));
        let after = BEFORE
            .replace("\"} 5", "\"} 8")
            .replace("} 1000", "} 1.6e+03");
        let after = ApiServer::of(&Samples::parse(
            &after.replace("version=\"v1\"} 5", "version=\"v1\"} 8"),
        ));
        let since = after.since(&before);
        let written = since.writes["PATCH services/status"];
        assert_eq!((written.count, written.answered), (3.0, 600.0));
        assert_eq!(since.writes.len(), 1);
    }

    #[test]
    fn an_api_server_that_was_restarted_began_at_nothing() {
        let before = ApiServer::of(&Samples::parse(&BEFORE.replace("\"} 5", "\"} 50")));
        let after = ApiServer::of(&Samples::parse(BEFORE));
        assert_eq!(after.since(&before).count("PATCH services/status"), 5.0);
    }
}
