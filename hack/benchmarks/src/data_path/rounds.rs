//! Rounds in turn: A B C, A B C, …, so that whatever disturbs the machine disturbs all alike.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::data_path::bed::Bed;
use crate::data_path::cpu::Cpu;
use crate::data_path::path::Path;
use crate::output::stats::Sample;

/// A figure and the processor time that it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured<T> {
    pub(crate) figure: T,
    pub(crate) cpu: Cpu,
}

/// What came of all rounds, by path, in the order of the rounds.
#[derive(Clone, Debug)]
pub(crate) struct Rounds<T>(BTreeMap<Path, Vec<Measured<T>>>);

impl<T> Rounds<T> {
    /// Measures every path once in each of `count` rounds.
    pub(crate) fn run(
        bed: &Bed,
        count: usize,
        measure: impl Fn(Path) -> Result<T>,
    ) -> Result<Self> {
        let mut rounds = BTreeMap::<Path, Vec<Measured<T>>>::new();
        for _ in 0..count {
            for path in Path::ALL {
                bed.forget_connections()?;
                let before = Cpu::read(&bed.servers)?;
                let figure = measure(path).with_context(|| path.name())?;
                let cpu = Cpu::read(&bed.servers)?.since(before);
                let measured = Measured { figure, cpu };
                rounds.entry(path).or_default().push(measured);
            }
        }
        Ok(Self(rounds))
    }

    /// A figure of each round by one path.
    pub(crate) fn sample(
        &self,
        path: Path,
        figure: impl Fn(&Measured<T>) -> f64,
    ) -> Result<Sample> {
        sample(self.of(path).iter().map(figure))
    }

    /// A figure by one path divided by the same by another, round by round.
    pub(crate) fn ratio(
        &self,
        path: Path,
        to: Path,
        figure: impl Fn(&Measured<T>) -> f64,
    ) -> Result<Sample> {
        let pairs = self.of(path).iter().zip(self.of(to));
        sample(pairs.map(|(one, other)| figure(one) / figure(other)))
    }

    fn of(&self, path: Path) -> &[Measured<T>] {
        self.0.get(&path).map(Vec::as_slice).unwrap_or_default()
    }
}

fn sample(figures: impl Iterator<Item = f64>) -> Result<Sample> {
    Sample::new(figures.collect()).context("no rounds, or one without a figure")
}
