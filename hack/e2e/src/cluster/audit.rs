//! The API server's audit log: who wrote statuses of Services, and who held the Lease of the
//! leading controller then.
//!
//! Each controller's token is bound to its Pod, so the API server itself says in every line
//! which of them sent the request: no header of theirs is believed.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::lab::state::{State, write_json};

/// The Lease of the leading controller.
const LEASE: &str = "highwire-controller";
/// The Pod that a token is bound to.
const POD: &str = "authentication.kubernetes.io/pod-name";

/// Writes what is logged: only writes to that Lease, with what they say, and writes to
/// statuses of Services, without. So it stays small.
pub(crate) fn write_policy(state: &State) -> Result<PathBuf> {
    let path = state.path("audit-policy.json");
    let writes = ["create", "update", "patch"];
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "omitManagedFields": true,
        "rules": [
            { "level": "RequestResponse", "verbs": writes, "resources":
                [{ "group": "coordination.k8s.io", "resources": ["leases"], "resourceNames": [LEASE] }] },
            // The name of what is created is not in the path.
            { "level": "RequestResponse", "verbs": ["create"], "resources":
                [{ "group": "coordination.k8s.io", "resources": ["leases"] }] },
            { "level": "Metadata", "verbs": writes, "resources":
                [{ "group": "", "resources": ["services/status"] }] },
            { "level": "None" },
        ],
    });
    write_json(&path, &policy)?;
    Ok(path)
}

/// Where the API server writes it.
pub(crate) fn path(state: &State) -> PathBuf {
    state.path("log/audit.log")
}

/// What the log says of the controllers of one installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many writes to statuses there were, whatever their answer, by Pod.
    pub writes: BTreeMap<String, usize>,
    /// How often another Pod took the Lease.
    pub changes: usize,
    /// Each write of a Pod that did not hold the Lease then.
    pub outside: Vec<String>,
}

/// Reads the log of a cluster and judges the controllers whose Lease is in that namespace.
///
/// # Errors
/// If the log cannot be read.
pub fn judge(state: &State, namespace: &str) -> Result<Verdict> {
    let path = path(state);
    let log = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(judge_lines(&log, namespace))
}

/// A line of the log, as far as it is needed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    user: User,
    object_ref: Option<Object>,
    response_status: Option<Status>,
    response_object: Option<Value>,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
}

#[derive(Debug, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// The Lease as a write left it.
struct Term {
    /// No earlier than this was it so.
    from: Timestamp,
    /// No later than this.
    since: Timestamp,
    /// Whose it is; `None` if it was given up.
    pod: Option<String>,
    /// Until when it is good without another renewal.
    until: Timestamp,
}

fn judge_lines(log: &str, namespace: &str) -> Verdict {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let lines: Vec<Line> = lines
        .filter(|line| line.stage == "ResponseComplete")
        .collect();
    let of = |line: &Line, resource: &str| {
        line.object_ref
            .as_ref()
            .is_some_and(|it| it.resource == resource)
    };
    let mut terms: Vec<Term> = lines
        .iter()
        .filter(|line| of(line, "leases"))
        .filter_map(|line| term(line, namespace))
        .collect();
    terms.sort_by_key(|term| term.since);
    let mut verdict = Verdict::default();
    let holders: Vec<&String> = terms.iter().filter_map(|term| term.pod.as_ref()).collect();
    verdict.changes = holders.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let account = format!("system:serviceaccount:{namespace}:");
    for line in lines.iter().filter(|line| of(line, "services")) {
        if !line.user.username.starts_with(&account) {
            continue;
        }
        let pod = pod(line).unwrap_or_default();
        *verdict.writes.entry(pod.clone()).or_default() += 1;
        let at = line.request_received_timestamp;
        // Of two writes to the Lease at the same time both may have been the last one.
        let last = terms.iter().rposition(|term| term.since <= at);
        let begun = terms
            .iter()
            .filter(|term| term.from <= at && at < term.since);
        let mut may_hold = last.map(|last| &terms[last]).into_iter().chain(begun);
        if !may_hold.any(|term| term.pod.as_ref() == Some(&pod) && at <= term.until) {
            let object = line.object_ref.as_ref();
            let name = object.map(|it| format!("{}/{}", it.namespace, it.name));
            let code = line.response_status.as_ref().map(|status| status.code);
            let held = last.and_then(|last| terms[last].pod.clone());
            verdict.outside.push(format!(
                "{at}: {pod} wrote {} (answer {}), the Lease was {}'s",
                name.unwrap_or_default(),
                code.unwrap_or_default(),
                held.unwrap_or_else(|| "nobody".into()),
            ));
        }
    }
    verdict
}

/// The Pod that sent a request.
fn pod(line: &Line) -> Option<String> {
    line.user.extra.get(POD)?.first().cloned()
}

/// What a write that succeeded made of the Lease.
fn term(line: &Line, namespace: &str) -> Option<Term> {
    if line.response_status.as_ref()?.code >= 300 {
        return None;
    }
    let lease = line.response_object.as_ref()?;
    let metadata = &lease["metadata"];
    if metadata["name"] != LEASE || metadata["namespace"] != namespace {
        return None;
    }
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let seconds = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or(0);
    // Who writes its own name holds it; who removes it has given it up.
    let pod = pod(line).filter(|_| !holder.is_empty());
    Some(Term {
        from: line.request_received_timestamp,
        since: line.stage_timestamp,
        pod,
        until: line.stage_timestamp + SignedDuration::from_secs(seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pod: &str, second: u32, resource: &str, holder: Option<&str>) -> String {
        let at = format!("2026-01-01T00:00:{second:02}.000000Z");
        let done = format!("2026-01-01T00:00:{second:02}.010000Z");
        let metadata = json!({ "name": LEASE, "namespace": "highwire-system" });
        let spec = json!({ "holderIdentity": holder, "leaseDurationSeconds": 6 });
        json!({
            "stage": "ResponseComplete",
            "user": {
                "username": "system:serviceaccount:highwire-system:highwire-controller",
                "extra": { POD: [pod] },
            },
            "objectRef": { "resource": resource, "namespace": "shop", "name": "web" },
            "responseStatus": { "code": 200 },
            "responseObject": { "metadata": metadata, "spec": spec },
            "requestReceivedTimestamp": at,
            "stageTimestamp": done,
        })
        .to_string()
    }

    #[test]
    fn a_write_must_fall_into_the_term_of_its_pod() {
        let lease = |pod, second| line(pod, second, "leases", Some(pod));
        let write = |pod, second| line(pod, second, "services", None);
        let log = [
            lease("one", 1),
            write("one", 2),
            lease("one", 3),
            lease("two", 10),
            write("two", 11),
            write("one", 12),
            write("two", 17),
            line("two", 18, "leases", None),
            write("two", 19),
        ];
        let verdict = judge_lines(&log.join("\n"), "highwire-system");
        assert_eq!(verdict.writes["one"], 2);
        assert_eq!(verdict.changes, 1);
        let late: Vec<&str> = verdict.outside.iter().map(|it| &it[17..24]).collect();
        assert_eq!(
            late,
            ["12Z: on", "17Z: tw", "19Z: tw"],
            "{:?}",
            verdict.outside
        );
    }

    #[test]
    fn who_takes_it_may_write_at_once() {
        let log = [
            line("one", 1, "leases", Some("one")),
            line("one", 1, "services", None),
        ];
        let verdict = judge_lines(&log.join("\n"), "highwire-system");
        assert_eq!(verdict.outside, [""; 0]);
        assert_eq!(judge_lines(&log.join("\n"), "other"), Verdict::default());
    }
}
