use highwire_api::{Protocol, node::ConflictReason};
use jiff::Timestamp;

use super::*;
use crate::{
    condition::{PORTS_ERROR, amended, ports_error},
    refusals::Refusal,
};

fn refusal(port: i32, held_by: &str) -> Refusal {
    Refusal {
        cause: Cause {
            port: PortKey::new(Protocol::Tcp, port).unwrap(),
            held_by: held_by.into(),
        },
        reason: ConflictReason::HeldByService,
    }
}

fn by(held_by: &[&str]) -> Refusals {
    let mut refusals = Refusals::default();
    for held_by in held_by {
        refusals.add("n1", &refusal(80, held_by));
    }
    refusals
}

/// A board, and a condition that is written whenever something has settled.
struct Case {
    board: ConflictBoard,
    condition: Option<Condition>,
    now: Instant,
}

impl Case {
    fn new() -> Self {
        Self {
            board: ConflictBoard::default(),
            condition: None,
            now: Instant::now(),
        }
    }

    /// What is told after `ms` in which this was so.
    fn pass(&mut self, refusals: &Refusals, ms: u64) -> Vec<String> {
        self.board.look(refusals, self.condition.as_ref(), self.now);
        self.now += Duration::from_millis(ms);
        if ms >= 400 {
            let stated = self.condition.as_ref();
            let new = ports_error(stated, refusals)
                .and_then(|words| amended(stated, PORTS_ERROR, words, None, Timestamp::UNIX_EPOCH));
            self.condition = new.or(self.condition.take());
        }
        self.board.look(refusals, self.condition.as_ref(), self.now);
        let news = self.board.take(self.now).into_iter();
        news.map(|news| match news {
            ConflictNews::Refused(cause) => cause.held_by,
            ConflictNews::Resolved(port) => format!("{port} resolved"),
        })
        .collect()
    }
}

#[test]
fn a_cause_is_told_once_and_the_release_of_the_port_once() {
    let mut case = Case::new();
    assert!(case.pass(&by(&["A"]), 100).is_empty(), "it may pass");
    assert_eq!(case.pass(&by(&["A"]), 400), ["A"]);
    assert!(case.pass(&by(&["A"]), 5000).is_empty());
    assert_eq!(case.pass(&by(&["B"]), 400), ["B"], "another holder is news");
    assert!(case.pass(&by(&["A"]), 100).is_empty());
    assert!(case.pass(&by(&[]), 100).is_empty());
    assert!(case.pass(&by(&["B"]), 5000).is_empty(), "it was no release");
    assert_eq!(case.pass(&by(&[]), 400), ["80/TCP resolved"]);
    assert!(case.pass(&by(&[]), 5000).is_empty());
    assert_eq!(case.pass(&by(&["A"]), 400), ["A"], "a new conflict");
    assert!(case.board.causes.len() == 1 && case.board.refused.len() == 1);
}

#[test]
fn what_passes_within_a_moment_is_not_told_at_all() {
    let mut case = Case::new();
    case.pass(&by(&["A"]), 300);
    assert!(case.pass(&by(&[]), 5000).is_empty());
    assert!(case.board.causes.is_empty());
    assert_eq!(case.board.next(), None);
}

#[test]
fn nothing_is_told_before_the_condition_says_so() {
    let mut case = Case::new();
    case.pass(&by(&["A"]), 399);
    case.now += SETTLE;
    assert!(case.board.take(case.now).is_empty());
    assert_eq!(case.pass(&by(&["A"]), 400), ["A"]);
}

#[test]
fn a_new_leader_knows_from_the_condition_what_was_told() {
    let mut case = Case::new();
    case.pass(&by(&["A", "B"]), 400);
    case.board = ConflictBoard::default();
    assert!(case.pass(&by(&["A", "B"]), 5000).is_empty());
    case.board = ConflictBoard::default();
    assert_eq!(case.pass(&by(&["B", "C"]), 5000), ["C"]);
    case.board = ConflictBoard::default();
    assert_eq!(case.pass(&by(&[]), 5000), ["80/TCP resolved"]);
}

#[test]
fn a_doubtful_refusal_keeps_what_was_told_and_adds_nothing() {
    let mut doubtful = by(&[]);
    doubtful.add_doubtful(&refusal(80, "A"));
    let mut case = Case::new();
    assert!(case.pass(&doubtful, 5000).is_empty());
    assert_eq!(case.pass(&by(&["A"]), 400), ["A"]);
    assert!(case.pass(&doubtful, 5000).is_empty());
}
