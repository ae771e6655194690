//! What became of the requests of one stream.

use std::time::Duration;

use serde::Serialize;

use super::exchange::Fault;
use super::{Outcome, Stream};
use crate::output::stats::Sample;

/// A SYN that is lost is sent again after 1 s: what takes this long was lost once.
const SLOW: Duration = Duration::from_millis(950);
/// The generator was too busy to send in time.
const LATE: Duration = Duration::from_millis(50);
/// Of the first faults, when and where they were is kept.
const KEPT_FAULTS: usize = 20;

/// Requests without an answer of the right Pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Lost {
    /// Refused at once.
    pub(crate) refused: u64,
    /// Cut after they were open.
    pub(crate) reset: u64,
    /// No answer in time.
    pub(crate) timeout: u64,
    /// Answered by somebody else, or by half.
    pub(crate) wrong: u64,
}

impl Lost {
    /// All of them.
    pub(crate) fn all(self) -> u64 {
        self.refused + self.reset + self.timeout + self.wrong
    }
}

/// Counts of one stream.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// The stream's name.
    pub(crate) name: String,
    /// With an answer of the right Pod.
    pub(crate) answered: u64,
    /// Without.
    pub(crate) lost: Lost,
    /// Answered, but so late that a packet must have been lost.
    pub(crate) slow: u64,
    /// Not sent, because the generator's own machine could not.
    pub(crate) own: u64,
    /// Not sent, because too many were under way.
    pub(crate) unsent: u64,
    /// Sent more than 50 ms after their time.
    pub(crate) late: u64,
    /// The first faults in words.
    pub(crate) faults: Vec<String>,
    milliseconds: Vec<f64>,
    latest: Duration,
}

impl Tally {
    /// Nothing yet.
    pub(super) fn new(stream: &Stream) -> Self {
        Self {
            name: stream.name.clone(),
            answered: 0,
            lost: Lost::default(),
            slow: 0,
            own: 0,
            unsent: 0,
            late: 0,
            faults: Vec::new(),
            milliseconds: Vec::new(),
            latest: Duration::ZERO,
        }
    }

    /// Takes one in.
    pub(super) fn add(&mut self, outcome: Outcome) {
        self.late += u64::from(outcome.late > LATE);
        self.latest = self.latest.max(outcome.late);
        let fault = match outcome.result {
            Ok(_) => {
                self.answered += 1;
                self.slow += u64::from(outcome.took >= SLOW);
                self.milliseconds.push(outcome.took.as_secs_f64() * 1e3);
                return;
            }
            Err(fault) => fault,
        };
        *match &fault {
            Fault::Refused => &mut self.lost.refused,
            Fault::Reset => &mut self.lost.reset,
            Fault::Timeout => &mut self.lost.timeout,
            Fault::Wrong(_) => &mut self.lost.wrong,
            Fault::Own(_) => &mut self.own,
        } += 1;
        if self.faults.len() < KEPT_FAULTS {
            self.faults.push(format!(
                "{} at {:.3} s, to {}: {fault:?} after {:?}",
                self.name,
                outcome.at.as_secs_f64(),
                outcome.to,
                outcome.took
            ));
        }
    }

    /// Adds those of another stream.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.answered += other.answered;
        self.lost.refused += other.lost.refused;
        self.lost.reset += other.lost.reset;
        self.lost.timeout += other.lost.timeout;
        self.lost.wrong += other.lost.wrong;
        self.slow += other.slow;
        self.own += other.own;
        self.unsent += other.unsent;
        self.late += other.late;
        self.latest = self.latest.max(other.latest);
        self.faults.extend(other.faults.iter().cloned());
        self.milliseconds.extend(&other.milliseconds);
    }

    /// All of them as one; `None` without any.
    pub(crate) fn total(all: &[Self]) -> Option<Self> {
        let (first, rest) = all.split_first()?;
        let mut total = first.clone();
        "all".clone_into(&mut total.name);
        rest.iter().for_each(|other| total.merge(other));
        Some(total)
    }

    /// Requests that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.answered + self.lost.all()
    }

    /// Milliseconds of those that were answered; `None` without any.
    pub(crate) fn times(&self) -> Option<Sample> {
        Sample::new(self.milliseconds.clone())
    }

    /// The longest time by which one was sent too late, in milliseconds.
    pub(crate) fn latest(&self) -> f64 {
        self.latest.as_secs_f64() * 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::exchange::Answered;
    use super::*;

    fn outcome(took: u64, late: u64, result: Result<Answered, Fault>) -> Outcome {
        Outcome {
            at: Duration::ZERO,
            late: Duration::from_millis(late),
            took: Duration::from_millis(took),
            to: ([192, 0, 2, 11], 80).into(),
            result,
        }
    }

    #[test]
    fn each_request_is_counted_once() {
        let mut tally = Tally::new(&Stream {
            name: "x".to_owned(),
            kind: Kind::NewConnection,
            to: Vec::new(),
            rate: 1.0,
            pods: "web-",
        });
        tally.add(outcome(3, 0, Ok(Answered)));
        tally.add(outcome(1_020, 60, Ok(Answered)));
        for fault in [Fault::Refused, Fault::Reset, Fault::Timeout] {
            tally.add(outcome(0, 0, Err(fault)));
        }
        tally.add(outcome(0, 0, Err(Fault::Wrong("who".to_owned()))));
        tally.add(outcome(0, 0, Err(Fault::Own("no port".to_owned()))));
        assert_eq!((tally.sent(), tally.answered, tally.lost.all()), (6, 2, 4));
        assert_eq!((tally.slow, tally.late, tally.own), (1, 1, 1));
        assert_eq!(tally.times().unwrap().max(), 1_020.0);
        let total = Tally::total(&[tally.clone(), tally]).unwrap();
        assert_eq!((total.sent(), total.slow), (12, 2));
        assert_eq!(total.faults.len(), 10);
    }
}
