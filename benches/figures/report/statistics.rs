//! Percentiles and medians of samples that were taken in rounds.

/// Samples of one quantity, one list for each round. A quantity that is measured once a round, such as a rate, has
/// rounds of one sample.
#[derive(Clone, Debug, Default)]
pub struct Rounds(Vec<Vec<f64>>);

/// A value of all samples, and the least and the greatest value of a single round. Shows how much the rounds differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub value: f64,
    pub least: f64,
    pub most: f64,
}

impl Rounds {
    /// Adds the samples of one round. A round without samples does not count.
    pub fn push(&mut self, round: Vec<f64>) {
        if !round.is_empty() {
            self.0.push(round);
        }
    }

    /// Number of rounds.
    pub fn rounds(&self) -> usize {
        self.0.len()
    }

    /// Number of samples of all rounds.
    pub fn samples(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// All samples in ascending order.
    pub fn pooled(&self) -> Vec<f64> {
        sorted(self.0.concat())
    }

    /// A percentile of all samples, and the least and the greatest one of a single round; none without samples.
    pub fn percentile(&self, percent: f64) -> Option<Spread> {
        let of_rounds: Vec<f64> =
            self.0.iter().filter_map(|round| percentile(&sorted(round.clone()), percent)).collect();
        Some(Spread {
            value: percentile(&self.pooled(), percent)?,
            least: of_rounds.iter().copied().reduce(f64::min)?,
            most: of_rounds.iter().copied().reduce(f64::max)?,
        })
    }

    /// The median of all samples; none without samples.
    pub fn median(&self) -> Option<Spread> {
        self.percentile(50.0)
    }
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

/// The nearest-rank percentile of ascending samples: the smallest sample that at least `percent` percent of the samples
/// do not exceed. It is always one of the samples.
pub fn percentile(ascending: &[f64], percent: f64) -> Option<f64> {
    let rank = (percent / 100.0 * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(rounds: &[&[f64]]) -> Rounds {
        let mut all = Rounds::default();
        rounds.iter().for_each(|round| all.push(round.to_vec()));
        all
    }

    #[test]
    fn a_percentile_is_the_sample_of_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (percent, expected) in [(0.0, 1.0), (1.0, 1.0), (50.0, 50.0), (99.0, 99.0), (99.5, 100.0), (100.0, 100.0)] {
            assert_eq!(percentile(&hundred, percent), Some(expected), "{percent}");
        }
        assert_eq!(percentile(&[7.0], 1.0), Some(7.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 50.0), Some(2.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 50.0), Some(2.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn the_percentile_of_all_rounds_is_that_of_the_pooled_samples() {
        let all = rounds(&[&[3.0, 1.0, 2.0], &[9.0, 7.0, 8.0], &[5.0, 4.0, 6.0]]);
        assert_eq!(all.median(), Some(Spread { value: 5.0, least: 2.0, most: 8.0 }));
        assert_eq!(all.percentile(99.0), Some(Spread { value: 9.0, least: 3.0, most: 9.0 }));
        assert_eq!((all.rounds(), all.samples()), (3, 9));
        assert_eq!(all.pooled().first(), Some(&1.0));
    }

    #[test]
    fn the_median_of_single_samples_is_the_middle_round() {
        assert_eq!(
            rounds(&[&[30.0], &[10.0], &[20.0]]).median(),
            Some(Spread { value: 20.0, least: 10.0, most: 30.0 })
        );
    }

    #[test]
    fn rounds_without_samples_do_not_count() {
        assert_eq!(rounds(&[&[]]).median(), None);
        assert_eq!(rounds(&[&[], &[4.0]]).rounds(), 1);
    }

    #[test]
    fn rounds_of_different_size_are_pooled_by_sample() {
        let all = rounds(&[&[1.0], &[2.0, 2.0, 2.0]]);
        assert_eq!(all.median(), Some(Spread { value: 2.0, least: 1.0, most: 2.0 }));
    }
}
