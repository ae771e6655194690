//! How much of its processors' time the machine gives to nobody who asks for it: what a
//! hypervisor takes, and interrupts. It limits which percentiles of a delay can be measured.

use std::thread;
use std::time::{Duration, Instant};

/// How long it is looked for.
const TIME: Duration = Duration::from_secs(3);
/// Shorter gaps between two readings of the clock are a process's own.
const SHORTEST: Duration = Duration::from_micros(50);

/// Gaps in which a process that does nothing but look at the clock could not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stalls {
    /// Per second and processor.
    pub(crate) rate: f64,
    /// Their share of the time.
    pub(crate) share: f64,
    /// The longest, in milliseconds.
    pub(crate) longest: f64,
}

impl Stalls {
    /// Reads the clock on every processor at the same time.
    pub(crate) fn look() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let looking: Vec<_> = (0..processors).map(|_| thread::spawn(look)).collect();
        let gaps = looking
            .into_iter()
            .flat_map(|one| one.join().unwrap_or_default());
        let gaps: Vec<f64> = gaps.map(|gap| gap.as_secs_f64()).collect();
        let time = TIME.as_secs_f64() * processors as f64;
        Self {
            rate: gaps.len() as f64 / time,
            share: gaps.iter().sum::<f64>() / time,
            longest: gaps.iter().copied().fold(0.0, f64::max) * 1e3,
        }
    }
}

fn look() -> Vec<Duration> {
    let start = Instant::now();
    let (mut last, mut gaps) = (start, Vec::new());
    while last - start < TIME {
        let now = Instant::now();
        if now - last > SHORTEST {
            gaps.push(now - last);
        }
        last = now;
    }
    gaps
}
