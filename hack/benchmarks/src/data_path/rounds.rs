//! Rounds in turn: A B C, A B C, …, so that whatever disturbs the machine disturbs all alike.

use std::collections::BTreeMap;
use std::fmt::Debug;

use anyhow::{Context, Result};

use crate::data_path::bed::Bed;
use crate::data_path::cpu::Cpu;
use crate::output::stats::Sample;

/// A figure and the processor time that it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured<T> {
    pub(crate) figure: T,
    pub(crate) cpu: Cpu,
}

/// What came of all rounds, by what was compared, in the order of the rounds.
#[derive(Clone, Debug)]
pub(crate) struct Rounds<K, T>(BTreeMap<K, Vec<Measured<T>>>);

impl<K: Copy + Ord + Debug, T> Rounds<K, T> {
    /// Measures each of `compared` once in each of `count` rounds.
    pub(crate) fn run(
        bed: &Bed,
        count: usize,
        compared: &[K],
        measure: impl Fn(K) -> Result<T>,
    ) -> Result<Self> {
        let mut rounds = BTreeMap::<K, Vec<Measured<T>>>::new();
        for _ in 0..count {
            for one in compared {
                bed.forget_connections()?;
                let before = Cpu::read(&bed.servers)?;
                let figure = measure(*one).with_context(|| format!("{one:?}"))?;
                let cpu = Cpu::read(&bed.servers)?.since(before);
                let measured = Measured { figure, cpu };
                rounds.entry(*one).or_default().push(measured);
            }
        }
        Ok(Self(rounds))
    }

    /// A figure of one of them in each round.
    pub(crate) fn sample(&self, one: K, figure: impl Fn(&Measured<T>) -> f64) -> Result<Sample> {
        sample(self.of(one).iter().map(figure))
    }

    /// A figure of one divided by the same of another, round by round.
    pub(crate) fn ratio(
        &self,
        one: K,
        to: K,
        figure: impl Fn(&Measured<T>) -> f64,
    ) -> Result<Sample> {
        let pairs = self.of(one).iter().zip(self.of(to));
        sample(pairs.map(|(one, other)| figure(one) / figure(other)))
    }

    fn of(&self, one: K) -> &[Measured<T>] {
        self.0.get(&one).map(Vec::as_slice).unwrap_or_default()
    }
}

fn sample(figures: impl Iterator<Item = f64>) -> Result<Sample> {
    Sample::new(figures.collect()).context("no rounds, or one without a figure")
}
