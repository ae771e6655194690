//! Figures of several rounds.

/// Values of the same thing measured several times, at least one, in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// None without values, or if one is not a number.
    pub(crate) fn new(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self(values))
    }

    /// The smallest value that `share` of the values (0 to 1) do not exceed: the nearest rank.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// The middle value, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let half = self.0.len() / 2;
        match self.0.len() % 2 {
            1 => self.0[half],
            _ => f64::midpoint(self.0[half - 1], self.0[half]),
        }
    }

    /// The largest value.
    pub(crate) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// From the first to the third quartile, as a share of the median: how far rounds differ.
    pub(crate) fn spread(&self) -> f64 {
        (self.percentile(0.75) - self.percentile(0.25)) / self.median()
    }

    /// How many values.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f64]) -> Sample {
        Sample::new(values.to_vec()).unwrap()
    }

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        assert_eq!(sample(&[4.0, 1.0, 3.0, 2.0]).median(), 2.5);
        assert_eq!(sample(&[3.0, 1.0, 2.0]).median(), 2.0);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        let hundred = sample(&hundred);
        assert_eq!(hundred.percentile(0.99), 99.0);
        assert_eq!(hundred.percentile(1.0), hundred.max());
        assert_eq!(hundred.percentile(0.0), hundred.percentile(0.01));
        assert_eq!(hundred.spread(), 50.0 / 50.5);
        assert_eq!(hundred.count(), 100);
    }

    #[test]
    fn nothing_is_no_sample() {
        assert!(Sample::new(vec![]).is_none());
        assert!(Sample::new(vec![f64::NAN]).is_none());
    }
}
