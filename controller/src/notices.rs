//! What to tell the owners of Services, and when: pure decisions about Events.
//!
//! Each cause is told once. Nothing is told of what passes within a moment, such as
//! the time a new Service needs until the agents have answered. Names are derived
//! from the cause, so that after a restart or a change of leader the API server
//! refuses the same Event a second time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use highwire_api::{Problem, ServiceKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    absence::ShortageKind,
    conflict_news::{ConflictBoard, ConflictNews},
    refusals::Refusals,
};

/// How long to collect changes of the addresses before they are told.
const COLLECT: Duration = Duration::from_secs(1);

/// Something to be told of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Its addresses changed.
    Updated,
    /// No node serves it.
    NoReadyNodes,
    /// Something is wrong with it.
    Problem(Problem),
    /// One of its ports is refused, or no longer.
    Conflict(ConflictNews),
}

/// What was told and what is to be told, by Service.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    boards: BTreeMap<ServiceKey, Board>,
    due: BTreeSet<(Instant, ServiceKey)>,
}

#[derive(Debug, Default)]
struct Board {
    /// A Service created anew under the same name starts anew.
    uid: String,
    updated: Option<Instant>,
    shortage: Option<(ShortageKind, Telling)>,
    problems: BTreeMap<Problem, Telling>,
    conflicts: ConflictBoard,
}

/// Goes from `At` to `Told` and never back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    At(Instant),
    Told,
}

impl Telling {
    /// Whether it is to be told now; then it is told.
    fn take(&mut self, now: Instant) -> bool {
        let due = matches!(self, Self::At(at) if *at <= now);
        if due {
            *self = Self::Told;
        }
        due
    }
}

impl Notices {
    /// The addresses of the Service were written.
    pub(crate) fn updated(&mut self, key: &ServiceKey, uid: &str, now: Instant) {
        let board = self.board(key, uid);
        if board.updated.is_none() {
            board.updated = Some(now + COLLECT);
            self.due.insert((now + COLLECT, key.clone()));
        }
    }

    /// The condition says that no node serves the Service, or not (`None`).
    pub(crate) fn shortage(
        &mut self,
        key: &ServiceKey,
        uid: &str,
        shortage: Option<ShortageKind>,
        now: Instant,
    ) {
        let board = self.board(key, uid);
        if board.shortage.map(|(kind, _)| kind) == shortage {
            return;
        }
        board.shortage = shortage.map(|kind| (kind, Telling::At(now)));
        if shortage.is_some() {
            self.due.insert((now, key.clone()));
        }
    }

    /// Everything that is wrong with the Service.
    pub(crate) fn problems(
        &mut self,
        key: &ServiceKey,
        uid: &str,
        problems: &[Problem],
        now: Instant,
    ) {
        let board = self.board(key, uid);
        board.problems.retain(|known, _| problems.contains(known));
        let mut news = false;
        for problem in problems {
            let known = board.problems.contains_key(problem);
            if !known {
                board.problems.insert(problem.clone(), Telling::At(now));
                news = true;
            }
        }
        if news {
            self.due.insert((now, key.clone()));
        }
    }

    /// Who refuses the Service, and what its condition says of that. Returns what of it
    /// has lasted long enough to be told.
    pub(crate) fn conflicts(
        &mut self,
        key: &ServiceKey,
        uid: &str,
        refusals: Refusals,
        condition: Option<&Condition>,
        now: Instant,
    ) -> Refusals {
        let conflicts = &mut self.board(key, uid).conflicts;
        conflicts.look(&refusals, condition, now);
        let settled = refusals.only(|cause| conflicts.has_settled(cause, now));
        if let Some(next) = conflicts.next() {
            self.due.insert((next, key.clone()));
        }
        settled
    }

    /// What is to be told now.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<(ServiceKey, Notice)> {
        let mut notices = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.due.pop_first() else {
                break;
            };
            let Some(board) = self.boards.get_mut(&key) else {
                continue;
            };
            let mut tell = |notice| notices.push((key.clone(), notice));
            if board.updated.is_some_and(|at| at <= now) {
                board.updated = None;
                tell(Notice::Updated);
            }
            if board
                .shortage
                .as_mut()
                .is_some_and(|(_, telling)| telling.take(now))
            {
                tell(Notice::NoReadyNodes);
            }
            for (problem, telling) in &mut board.problems {
                if telling.take(now) {
                    tell(Notice::Problem(problem.clone()));
                }
            }
            let news = board.conflicts.take(now);
            news.into_iter().map(Notice::Conflict).for_each(tell);
        }
        notices
    }

    /// When something is to be told.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The Service is gone.
    pub(crate) fn forget(&mut self, key: &ServiceKey) {
        // Its times in `due` find no board and are dropped when they come.
        self.boards.remove(key);
    }

    fn board(&mut self, key: &ServiceKey, uid: &str) -> &mut Board {
        let board = self.boards.entry(key.clone()).or_default();
        if board.uid != uid {
            *board = Board {
                uid: uid.to_owned(),
                ..Board::default()
            };
        }
        board
    }
}

#[cfg(test)]
#[path = "notices_tests.rs"]
mod tests;
