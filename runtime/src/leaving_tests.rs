use serde_json::json;

use super::*;

fn metadata(value: serde_json::Value) -> ObjectMeta {
    serde_json::from_value(value).unwrap()
}

const DELETED: &str = "2026-01-02T03:04:05Z";

#[test]
fn what_is_orphaned_does_not_go_with_its_owner() {
    assert!(!is_going(&metadata(json!({}))));
    for finalizers in [json!([]), json!(["foregroundDeletion"])] {
        let going = json!({"deletionTimestamp": DELETED, "finalizers": finalizers});
        assert!(is_going(&metadata(going)));
    }
    let orphaning = json!({"deletionTimestamp": DELETED, "finalizers": ["orphan"]});
    assert!(!is_going(&metadata(orphaning)));
}

#[test]
fn only_a_controller_owns() {
    let owned = |kind: &str, controller: bool| {
        metadata(json!({"ownerReferences": [{
            "apiVersion": "apps/v1", "kind": kind, "name": "n", "uid": "u",
            "controller": controller,
        }]}))
    };
    let name = |metadata: &ObjectMeta| owner(metadata, "DaemonSet").map(|owner| owner.name.clone());
    assert_eq!(name(&owned("DaemonSet", true)).as_deref(), Some("n"));
    assert_eq!(name(&owned("DaemonSet", false)), None);
    assert_eq!(name(&owned("ReplicaSet", true)), None);
    assert_eq!(name(&metadata(json!({}))), None);
}

#[test]
fn the_answers_of_two_objects_come_to_one() {
    use Answer::{Goes, Stays, Unauthorized, Unknown};
    for (one, other, both) in [
        (Stays, Stays, Stays),
        (Stays, Goes("x"), Goes("x")),
        (Unknown, Goes("x"), Goes("x")),
        (Unauthorized, Goes("x"), Goes("x")),
        (Stays, Unknown, Unknown),
        (Stays, Unauthorized, Unauthorized),
        (Unknown, Unauthorized, Unauthorized),
    ] {
        assert_eq!((one.and(other), other.and(one)), (both, both));
    }
}

/// What the answers come to, with the number of those that were heard.
fn hear(answers: &[Answer], explained: bool) -> Option<(usize, Leaving)> {
    let mut inquiry = Inquiry::default();
    let mut heard = answers.iter().enumerate();
    heard.find_map(|(at, answer)| Some((at + 1, inquiry.hear(*answer, explained)?)))
}

#[test]
fn one_clear_answer_is_enough() {
    assert_eq!(hear(&[Answer::Stays], false), Some((1, Leaving::ForNow)));
    let gone = [Answer::Unknown, Answer::Goes("x")];
    assert_eq!(hear(&gone, false), Some((2, Leaving::ForGood("x"))));
}

#[test]
fn unauthorized_counts_when_it_is_said_again_and_again_without_another_reason() {
    let all = [Answer::Unauthorized; 9];
    let gone = Leaving::ForGood("the ServiceAccount is gone");
    assert_eq!(hear(&all, false), Some((5, gone)));
    assert_eq!(hear(&all, true), None, "the Pod was deleted by force");
    let mut blip = all;
    blip[4] = Answer::Unknown;
    assert_eq!(hear(&blip[..9], false), None, "not in a row");
    blip[4] = Answer::Stays;
    assert_eq!(hear(&blip, false), Some((5, Leaving::ForNow)));
}

#[tokio::test]
async fn without_any_answer_everything_stays_unless_its_end_was_seen() {
    let (memory, limit) = (Memory::default(), Duration::from_millis(50));
    let silent = async || Answer::Unknown;
    assert_eq!(memory.ask_within(limit, silent).await, Leaving::ForNow);
    let asked = memory.clone();
    let asking = tokio::spawn(async move { asked.ask(silent).await });
    memory.namespace.send_replace(Some("seen"));
    assert_eq!(asking.await.unwrap(), Leaving::ForGood("seen"));
}
