use std::{cell::Cell, convert::Infallible};

use http::Request;
use kube::client::Body;
use serde_json::json;

use super::*;

fn metadata_of(value: serde_json::Value) -> ObjectMeta {
    serde_json::from_value(value).unwrap()
}

/// A program in the Pod `p` whose API server answers 500 to everything.
fn installation() -> Installation {
    let broken = tower::service_fn(async |_: Request<Body>| {
        let response = http::Response::builder().status(500).body(Body::empty());
        Ok::<_, Infallible>(response.unwrap())
    });
    Installation::new(
        Client::new(broken, "default"),
        "highwire-system".to_owned(),
        Some("p".to_owned()),
    )
}

fn gone(reason: &str) -> Presence {
    Presence::Gone(reason.to_owned())
}

fn uninstalled(reason: &str) -> StopReason {
    StopReason::Uninstall(reason.to_owned())
}

const DELETED: &str = "2026-01-02T03:04:05Z";

#[test]
fn an_orphaning_deletion_does_not_reach_what_is_owned() {
    let presence = |value| Presence::of("DaemonSet", Ok(Some(metadata_of(value))));
    assert_eq!(presence(json!({})), Presence::Present);
    for finalizers in [json!([]), json!(["foregroundDeletion"])] {
        let deleted = json!({"deletionTimestamp": DELETED, "finalizers": finalizers});
        assert_eq!(presence(deleted), gone("the DaemonSet is being deleted"));
    }
    let orphaning = json!({"deletionTimestamp": DELETED, "finalizers": ["orphan"]});
    assert_eq!(presence(orphaning), Presence::Present);
    assert_eq!(Presence::of("Node", Ok(None)), gone("the Node is gone"));
}

#[test]
fn only_a_controller_owns() {
    let owned = |controller: bool| {
        metadata_of(json!({"ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "n", "uid": "u",
            "controller": controller,
        }]}))
    };
    assert_eq!(owner(&owned(true)).unwrap().name, "n");
    assert_eq!(owner(&owned(false)), None);
    assert_eq!(owner(&metadata_of(json!({}))), None);
}

#[test]
fn one_that_is_gone_decides_for_both() {
    use Presence::{Present, Unauthorized, Unknown};
    for (one, other, both) in [
        (Present, Present, Present),
        (Present, gone("x"), gone("x")),
        (Unknown, gone("x"), gone("x")),
        (Unauthorized, gone("x"), gone("x")),
        (Present, Unknown, Unknown),
        (Present, Unauthorized, Unauthorized),
        (Unknown, Unauthorized, Unauthorized),
    ] {
        assert_eq!(one.clone().and(other.clone()), both);
        assert_eq!(other.and(one), both);
    }
}

/// The conclusion from these answers in this order, the last one repeated, and how many
/// were needed.
async fn conclusion(program: &Installation, answers: &[Presence]) -> (StopReason, usize) {
    let asked = Cell::new(0);
    let reason = program
        .inquire(ANSWER_LIMIT, async || {
            let answer = &answers[asked.get().min(answers.len() - 1)];
            asked.set(asked.get() + 1);
            answer.clone()
        })
        .await;
    (reason, asked.get())
}

#[tokio::test(start_paused = true)]
async fn one_clear_answer_is_enough() {
    let program = installation();
    let present = conclusion(&program, &[Presence::Present]).await;
    assert_eq!(present, (StopReason::Restart, 1));
    let late = conclusion(&program, &[Presence::Unknown, gone("x")]).await;
    assert_eq!(late, (uninstalled("x"), 2));
}

#[tokio::test(start_paused = true)]
async fn five_times_unauthorized_in_a_row_means_that_the_account_is_gone() {
    use Presence::{Present, Unauthorized, Unknown};
    let account_gone = uninstalled("the ServiceAccount is gone");
    let program = installation();
    let all = conclusion(&program, &[Unauthorized]).await;
    assert_eq!(all, (account_gone.clone(), 5));
    let four = [Unauthorized, Unauthorized, Unauthorized, Unauthorized];
    let interrupted = [&four[..], &[Unknown, Unauthorized]].concat();
    assert_eq!(
        conclusion(&program, &interrupted).await,
        (account_gone, 10),
        "not in a row"
    );
    let back = [&four[..], &[Present]].concat();
    assert_eq!(conclusion(&program, &back).await, (StopReason::Restart, 5));

    // The token was bound to a Pod that was deleted by force.
    program.pod_was_deleted();
    let (reason, _) = conclusion(&program, &[Unauthorized]).await;
    assert_eq!(reason, StopReason::Restart);
}

#[tokio::test(start_paused = true)]
async fn without_any_answer_it_is_a_restart_unless_the_namespace_was_seen_deleted() {
    let program = installation();
    let begin = Instant::now();
    let nothing_else = async || Presence::Present;
    let reason = program.stop_reason(async {}, nothing_else).await;
    assert_eq!(reason, StopReason::Restart);
    assert_eq!(begin.elapsed(), ANSWER_LIMIT);

    let never_answered = async || Presence::Unknown;
    let deletion = async {
        sleep(PAUSE * 2).await;
        program.namespace_deleted.send_replace(true);
    };
    let (reason, ()) = tokio::join!(program.stop_reason(async {}, never_answered), deletion);
    assert_eq!(reason, uninstalled("the Namespace is being deleted"));
}

#[test]
fn only_an_answer_that_names_the_object_says_that_it_is_gone() {
    let status = |value| serde_json::from_value::<Status>(value).unwrap();
    let of_object = json!({
        "status": "Failure", "code": 404, "reason": "NotFound",
        "message": "daemonsets.apps \"highwire-agent\" not found",
        "details": {"name": "highwire-agent", "group": "apps", "kind": "daemonsets"},
    });
    assert!(says_gone(&status(of_object.clone()), "highwire-agent"));
    assert!(!says_gone(&status(of_object), "another"));
    let page = json!({"status": "Failure", "code": 404, "message": "404 page not found"});
    assert!(!says_gone(&status(page), "highwire-agent"));
}
