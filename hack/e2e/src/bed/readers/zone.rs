//! A DNS zone that ExternalDNS writes into by its webhook protocol, so that a test reads
//! records and not logs.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | which domains it takes: all |
//! | `GET /records` | all records |
//! | `POST /adjustendpoints` | what was sent: it has no wishes |
//! | `POST /records` | 204; the changes are made |

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::lab::netns::Netns;

/// The protocol's version 1.
const MEDIA_TYPE: &str = "application/external.dns.webhook+json;version=1";

/// A zone. It answers until it is dropped.
pub struct Zone {
    shared: Arc<Mutex<Content>>,
    address: SocketAddr,
    server: Option<(oneshot::Sender<()>, JoinHandle<Result<()>>)>,
}

#[derive(Default)]
struct Content {
    records: BTreeMap<(String, String), Record>,
    /// What each name had, after each change of it.
    history: BTreeMap<String, Vec<Vec<String>>>,
    was_read: bool,
}

/// A record as ExternalDNS sends it, and as it wants it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    dns_name: String,
    record_type: String,
    targets: Vec<String>,
    #[serde(default, rename = "recordTTL")]
    ttl: u64,
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Changes {
    #[serde(default)]
    create: Vec<Record>,
    #[serde(default)]
    update_new: Vec<Record>,
    #[serde(default)]
    delete: Vec<Record>,
}

impl Zone {
    /// An empty one, at the loopback of that namespace.
    pub(super) fn start(netns: &Netns) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.context("listen on loopback")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::<Mutex<Content>>::default();
        let (stop, stopped) = oneshot::channel();
        let content = Arc::clone(&shared);
        let thread = thread::spawn(move || serve(listener, content, stopped));
        Ok(Self {
            shared,
            address,
            server: Some((stop, thread)),
        })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn was_read(&self) -> bool {
        lock(&self.shared).was_read
    }

    /// What a name has, sorted, as `A 192.0.2.11`. By TXT records ExternalDNS says which
    /// names are its own; those are left out.
    pub fn lookup(&self, name: &str) -> Vec<String> {
        lock(&self.shared).lookup(name)
    }

    /// What a name has had, from its first record to now.
    pub fn history(&self, name: &str) -> Vec<Vec<String>> {
        let content = lock(&self.shared);
        content.history.get(name).cloned().unwrap_or_default()
    }

    /// The times to live that its records have.
    pub fn ttls(&self, name: &str) -> BTreeSet<u64> {
        let content = lock(&self.shared);
        let of_name = content.answers(name);
        of_name.map(|record| record.ttl).collect()
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.server.take() {
            stop.send(()).ok();
            match thread.join() {
                Ok(Ok(())) => {}
                other => eprintln!("zone: {other:?}"),
            }
        }
    }
}

impl Content {
    fn answers(&self, name: &str) -> impl Iterator<Item = &Record> {
        let records = self.records.values();
        records.filter(move |record| record.dns_name == name && record.record_type != "TXT")
    }

    fn lookup(&self, name: &str) -> Vec<String> {
        let found = self.answers(name).flat_map(|record| {
            let targets = record.targets.iter();
            targets.map(move |target| format!("{} {target}", record.record_type))
        });
        let mut found: Vec<String> = found.collect();
        found.sort();
        found
    }

    fn change(&mut self, changes: Changes) {
        let deleted = changes.delete.iter();
        let written = changes.create.iter().chain(&changes.update_new);
        let names = deleted.chain(written).map(|record| record.dns_name.clone());
        let names: BTreeSet<String> = names.collect();
        for record in changes.delete {
            self.records.remove(&key(&record));
        }
        for record in changes.create.into_iter().chain(changes.update_new) {
            self.records.insert(key(&record), record);
        }
        for name in names {
            let now = self.lookup(&name);
            let history = self.history.entry(name).or_default();
            if history.last().map_or(!now.is_empty(), |last| *last != now) {
                history.push(now);
            }
        }
    }
}

fn key(record: &Record) -> (String, String) {
    (record.dns_name.clone(), record.record_type.clone())
}

fn serve(
    listener: TcpListener,
    content: Arc<Mutex<Content>>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let app = Router::new().fallback(handle).with_state(content);
        tokio::select! {
            served = async { axum::serve(listener, app).await } => served.context("serve"),
            _ = stopped => Ok(()),
        }
    })
}

async fn handle(
    State(content): State<Arc<Mutex<Content>>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let typed = |body: Vec<u8>| ([(CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
    match (method.as_str(), uri.path()) {
        ("GET", "/") => typed(json!({}).to_string().into_bytes()),
        ("POST", "/adjustendpoints") => typed(body.to_vec()),
        ("GET", "/records") => {
            let mut content = lock(&content);
            content.was_read = true;
            let records: Vec<&Record> = content.records.values().collect();
            typed(json!(records).to_string().into_bytes())
        }
        ("POST", "/records") => match serde_json::from_slice(&body) {
            Ok(changes) => {
                lock(&content).change(changes);
                StatusCode::NO_CONTENT.into_response()
            }
            Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(changes: Value) -> Changes {
        serde_json::from_value(changes).unwrap()
    }

    #[test]
    fn a_zone_has_what_was_written_last_and_remembers_the_rest() {
        let mut zone = Content::default();
        let record = |targets: &[&str]| {
            json!({
                "dnsName": "web.example.org", "recordType": "A", "targets": targets,
                "recordTTL": 30, "labels": {"owner": "test"},
            })
        };
        let (both, one) = (
            record(&["192.0.2.12", "192.0.2.11"]),
            record(&["192.0.2.11"]),
        );
        zone.change(changes(json!({ "create": [both] })));
        assert_eq!(
            zone.lookup("web.example.org"),
            ["A 192.0.2.11", "A 192.0.2.12"]
        );
        let sent = json!(zone.records.values().collect::<Vec<_>>());
        assert_eq!(sent, json!([both]), "it comes back as it was sent");
        zone.change(changes(json!({ "updateOld": [both], "updateNew": [one] })));
        assert_eq!(zone.lookup("web.example.org"), ["A 192.0.2.11"]);
        zone.change(changes(json!({ "delete": [one] })));
        assert!(zone.lookup("web.example.org").is_empty());
        let lengths = zone.history["web.example.org"].iter().map(Vec::len);
        assert_eq!(lengths.collect::<Vec<_>>(), [2, 1, 0]);
    }
}
