//! What an updater was asked, in order, and what may not be in it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Its header `Authorization`.
    pub authorization: Option<String>,
    /// Its body.
    pub body: String,
    /// When it came.
    pub started: Instant,
    /// When it was answered, or its client hung up; `None` while it lasts.
    pub ended: Option<Instant>,
    /// What was answered; `None` if the client did not wait for it.
    pub status: Option<u16>,
}

impl Request {
    /// Which backend it is about.
    pub fn backend(&self) -> Option<String> {
        let name = &self.json()?["backendName"];
        name.as_str().map(str::to_owned)
    }

    /// Its body.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.body).ok()
    }

    /// Where it sends traffic, as `HOST:PORT`, in the order of the body.
    pub fn servers(&self) -> Vec<String> {
        let body = self.json().unwrap_or_default();
        let servers = body["upstreamServers"].as_array().into_iter().flatten();
        servers
            .map(|it| format!("{}:{}", it["host"].as_str().unwrap_or("?"), it["port"]))
            .collect()
    }

    /// What it makes of its backend.
    fn content(&self) -> Option<String> {
        match self.method.as_str() {
            "DELETE" => Some("nothing".to_owned()),
            _ => Some(self.json()?.to_string()),
        }
    }
}

/// Requests for one backend of which a later one began before an earlier one had ended.
pub fn overlapping(requests: &[Request]) -> Vec<String> {
    let mut found = Vec::new();
    for (backend, requests) in by_backend(requests) {
        for pair in requests.windows(2) {
            let [first, second] = pair else { continue };
            if first.ended.is_none_or(|ended| ended > second.started) {
                found.push(format!("{backend}: {first:?} and {second:?}"));
            }
        }
    }
    found
}

/// Backends that were made what they had been before, after they had been something else. In
/// a test that undoes nothing, the last is stale.
pub fn turned_back(requests: &[Request]) -> Vec<String> {
    let mut found = Vec::new();
    for (backend, requests) in by_backend(requests) {
        let mut contents: Vec<String> = requests.iter().filter_map(|it| it.content()).collect();
        contents.dedup();
        let again = (1..contents.len()).find(|at| contents[..*at].contains(&contents[*at]));
        if let Some(again) = again {
            found.push(format!("{backend}: {:?}", &contents[..=again]));
        }
    }
    found
}

fn by_backend(requests: &[Request]) -> BTreeMap<String, Vec<&Request>> {
    let mut found: BTreeMap<String, Vec<&Request>> = BTreeMap::new();
    for request in requests {
        if let Some(backend) = request.backend() {
            found.entry(backend).or_default().push(request);
        }
    }
    found
}

/// All requests of an updater, written to a file as well.
pub(super) struct Log {
    requests: Mutex<Vec<Request>>,
    file: PathBuf,
}

/// A request that is being answered. When it goes, the request has ended.
pub(super) struct Entry {
    log: Arc<Log>,
    index: usize,
    status: Option<u16>,
}

impl Log {
    pub(super) fn to(file: PathBuf) -> Self {
        Self {
            requests: Mutex::default(),
            file,
        }
    }

    pub(super) fn all(&self) -> Vec<Request> {
        self.lock().clone()
    }

    pub(super) fn forget(&self) {
        // Those that last have their places still.
        let mut requests = self.lock();
        if requests.iter().all(|it| it.ended.is_some()) {
            requests.clear();
        }
    }

    pub(super) fn begin(self: &Arc<Self>, request: Request) -> Entry {
        let mut requests = self.lock();
        requests.push(request);
        Entry {
            log: Arc::clone(self),
            index: requests.len() - 1,
            status: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// It is answered with this status.
    pub(super) fn answered(mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut requests = self.log.lock();
        let Some(request) = requests.get_mut(self.index) else {
            return;
        };
        request.ended = Some(now);
        request.status = self.status;
        let line = format!(
            "updater: {} {} {} {:?} after {:?}\n",
            request.method,
            request.path,
            request.body.trim(),
            self.status,
            now - request.started
        );
        drop(requests);
        // For people; a test reads the list.
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.log.file);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .ok();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn request(at: (u64, u64), method: &str, port: u16) -> Request {
        let start = *START;
        Request {
            method: method.to_owned(),
            path: "/".to_owned(),
            authorization: None,
            body: format!(r#"{{"backendName": "web", "lbPort": {port}}}"#),
            started: start + Duration::from_secs(at.0),
            ended: Some(start + Duration::from_secs(at.1)),
            status: Some(200),
        }
    }

    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

    #[test]
    fn requests_that_overlap_are_found() {
        let one = request((0, 2), "POST", 1);
        assert!(overlapping(&[one.clone(), request((2, 3), "POST", 1)]).is_empty());
        assert_eq!(overlapping(&[one, request((1, 3), "POST", 1)]).len(), 1);
    }

    #[test]
    fn what_comes_back_is_found() {
        let of = |ports: &[(&str, u16)]| -> Vec<Request> {
            let ports = ports.iter();
            ports
                .map(|(method, port)| request((0, 0), method, *port))
                .collect()
        };
        let onwards = [
            ("POST", 1),
            ("POST", 1),
            ("POST", 2),
            ("DELETE", 0),
            ("DELETE", 1),
        ];
        assert!(turned_back(&of(&onwards)).is_empty());
        let back = [("POST", 1), ("POST", 2), ("POST", 1)];
        assert_eq!(turned_back(&of(&back)).len(), 1);
        let risen = [("POST", 1), ("DELETE", 0), ("POST", 1)];
        assert_eq!(turned_back(&of(&risen)).len(), 1);
    }
}
