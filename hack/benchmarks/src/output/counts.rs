//! Counts and ratios that do not depend on the machine, compared with committed ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use highwire_e2e::checkout;
use serde::{Deserialize, Serialize};

use crate::output::table::{Table, number};

/// What was counted, by name: `data-path: conntrack entries per connection, NodePort`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(BTreeMap<String, f64>);

impl Counts {
    /// Notes a count. Its name begins with the part and a colon.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), value);
    }
}

/// What a count should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Expectation {
    value: f64,
    /// How far it may be off, as a share of the value; of 1 if the value is 0.
    tolerance: f64,
}

impl Expectation {
    fn allows(self, value: f64) -> bool {
        let unit = if self.value == 0.0 {
            1.0
        } else {
            self.value.abs()
        };
        (value - self.value).abs() <= self.tolerance * unit + f64::EPSILON
    }
}

/// The committed expectations.
pub(crate) struct Expected {
    path: PathBuf,
}

impl Expected {
    /// `hack/benchmarks/expected.json` of the checkout.
    pub(crate) fn file() -> Self {
        let path = checkout().join("hack/benchmarks/expected.json");
        Self { path }
    }

    /// Compares and prints a table; an error if a count is out of its tolerance, unknown or
    /// missing. With `update` it writes the counts down instead; new ones get no tolerance.
    pub(crate) fn settle(&self, counts: &Counts, update: bool) -> Result<()> {
        let expected = self.read()?;
        if update {
            return self.write(&updated(expected, counts));
        }
        let (table, wrong) = compare(&expected, counts);
        println!("{table}");
        if wrong > 0 {
            bail!(
                "{wrong} of {} counts are not as {} expects; if that is wanted: hack/bench --quick --update",
                counts.0.len(),
                self.path.display()
            );
        }
        Ok(())
    }

    fn read(&self) -> Result<BTreeMap<String, Expectation>> {
        let path = self.path.display();
        let text = fs::read_to_string(&self.path).with_context(|| format!("read {path}"))?;
        serde_json::from_str(&text).with_context(|| format!("understand {path}"))
    }

    fn write(&self, expected: &BTreeMap<String, Expectation>) -> Result<()> {
        let text = serde_json::to_string_pretty(expected)? + "\n";
        fs::write(&self.path, text).with_context(|| format!("write {}", self.path.display()))
    }
}

/// Whether a count of that name belongs to a part that was measured.
fn measured(counts: &Counts, name: &str) -> bool {
    let part = |name: &str| name.split(':').next().map(str::to_owned);
    counts.0.keys().any(|known| part(known) == part(name))
}

fn updated(
    mut expected: BTreeMap<String, Expectation>,
    counts: &Counts,
) -> BTreeMap<String, Expectation> {
    expected.retain(|name, _| counts.0.contains_key(name) || !measured(counts, name));
    for (name, value) in &counts.0 {
        let tolerance = expected.get(name).map_or(0.0, |known| known.tolerance);
        let value = *value;
        expected.insert(name.clone(), Expectation { value, tolerance });
    }
    expected
}

/// The table of all counts, and how many are wrong.
fn compare(expected: &BTreeMap<String, Expectation>, counts: &Counts) -> (Table, usize) {
    let mut table = Table::new(&["count", "measured", "expected", "tolerance", ""]);
    let mut wrong = 0;
    let mut row = |name: &str, value: Option<f64>, expectation: Option<&Expectation>| {
        let verdict = match (value, expectation) {
            (Some(value), Some(expectation)) if expectation.allows(value) => "",
            (Some(_), Some(_)) => "OUT",
            (Some(_), None) => "UNKNOWN",
            (None, _) => "MISSING",
        };
        wrong += usize::from(!verdict.is_empty());
        table.row([
            name.to_owned(),
            value.map(number).unwrap_or_default(),
            expectation.map(|it| number(it.value)).unwrap_or_default(),
            expectation
                .map(|it| format!("{:.0} %", it.tolerance * 100.0))
                .unwrap_or_default(),
            verdict.to_owned(),
        ]);
    };
    for (name, value) in &counts.0 {
        row(name, Some(*value), expected.get(name));
    }
    for (name, expectation) in expected {
        if measured(counts, name) && !counts.0.contains_key(name) {
            row(name, None, Some(expectation));
        }
    }
    (table, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(entries: &[(&str, f64, f64)]) -> BTreeMap<String, Expectation> {
        let entries = entries.iter().map(|(name, value, tolerance)| {
            let (value, tolerance) = (*value, *tolerance);
            ((*name).to_owned(), Expectation { value, tolerance })
        });
        entries.collect()
    }

    fn counts(entries: &[(&str, f64)]) -> Counts {
        let mut counts = Counts::default();
        for (name, value) in entries {
            counts.add(*name, *value);
        }
        counts
    }

    #[test]
    fn a_count_may_be_off_by_its_tolerance() {
        let expected = expected(&[("a: x", 100.0, 0.1), ("a: y", 0.0, 0.0)]);
        for (x, y, wrong) in [(110.0, 0.0, 0), (89.0, 0.0, 1), (100.0, 1.0, 1)] {
            let (table, found) = compare(&expected, &counts(&[("a: x", x), ("a: y", y)]));
            assert_eq!(found, wrong, "{table}");
        }
    }

    #[test]
    fn unknown_and_missing_counts_are_wrong() {
        let expected = expected(&[("a: x", 1.0, 0.0), ("b: x", 1.0, 0.0)]);
        let (table, wrong) = compare(&expected, &counts(&[("a: new", 1.0)]));
        let table = table.to_string();
        assert_eq!(wrong, 2, "{table}");
        assert!(
            table.contains("UNKNOWN") && table.contains("MISSING"),
            "{table}"
        );
        assert!(
            !table.contains("b: x"),
            "that part was not measured: {table}"
        );
    }

    #[test]
    fn an_update_keeps_tolerances_and_other_parts() {
        let before = expected(&[
            ("a: x", 1.0, 0.2),
            ("a: gone", 1.0, 0.0),
            ("b: x", 1.0, 0.1),
        ]);
        let after = updated(before, &counts(&[("a: x", 2.0), ("a: new", 3.0)]));
        let wanted = expected(&[("a: x", 2.0, 0.2), ("a: new", 3.0, 0.0), ("b: x", 1.0, 0.1)]);
        assert_eq!(after, wanted);
    }
}
