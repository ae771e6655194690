//! How the answer to a write is lost.

use std::time::Duration;

/// What becomes of a write and of the answer to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out and answered at once.
    #[default]
    Answered,
    /// It is carried out, but no answer comes.
    NoAnswer,
    /// It is carried out, the answer is lost, and the request that is sent again is refused.
    SentAgain,
    /// It never arrives, and no answer comes.
    Lost,
}

/// A write whose answer is lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    pub fate: Fate,
    /// After which time the writer gives up.
    pub given_up: Duration,
    /// After which time the watch shows what was written.
    pub seen: Duration,
}
