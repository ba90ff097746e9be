//! One figure: what the daemon needs, what the floor needs, and the goal for it.

use serde_json::{Value, json};

use super::statistics::{Rounds, Spread};

/// What a figure is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most this multiple of the floor.
    RatioAtMost(f64),
    /// At least this multiple of the floor.
    RatioAtLeast(f64),
    /// At most this value.
    AtMost(f64),
    /// At least this value.
    AtLeast(f64),
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The group that measures it.
    pub group: String,
    pub name: String,
    pub unit: &'static str,
    pub ours: Spread,
    /// What the floor is, and its value.
    pub floor: Option<(&'static str, Spread)>,
    pub goal: Option<Goal>,
    pub rounds: usize,
    pub samples: usize,
}

/// Samples of the daemon and of its floor, taken in the same rounds.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    pub ours: Rounds,
    pub floor: Rounds,
}

impl Figure {
    /// The daemon's value as a multiple of the floor's.
    pub fn ratio(&self) -> Option<f64> {
        self.floor.as_ref().map(|(_, floor)| self.ours.value / floor.value)
    }

    /// Whether the goal is reached; none without a goal.
    pub fn reached(&self) -> Option<bool> {
        let ratio = self.ratio().unwrap_or(f64::NAN);
        Some(match self.goal? {
            Goal::RatioAtMost(most) => ratio <= most,
            Goal::RatioAtLeast(least) => ratio >= least,
            Goal::AtMost(most) => self.ours.value <= most,
            Goal::AtLeast(least) => self.ours.value >= least,
        })
    }

    /// The figure as one line of text.
    pub fn line(&self) -> String {
        let floor = self.floor.as_ref().map_or("-".to_owned(), |(_, floor)| number(floor.value));
        let ratio = self.ratio().map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let goal = self.goal.map_or(String::new(), |goal| goal.to_string());
        let missed = if self.reached() == Some(false) { " missed" } else { "" };
        let line = format!(
            "{:<50} {:<6} {:>10} {:>19} {floor:>10} {ratio:>7}  {goal}{missed}",
            self.name,
            self.unit,
            number(self.ours.value),
            self.range_of(&self.ours)
        );
        line.trim_end().to_owned()
    }

    /// The figure as a row of a Markdown table with the columns of [`Figure::MARKDOWN_HEAD`].
    pub fn markdown(&self) -> String {
        let (name, floor, of_floor) = self.floor.as_ref().map_or_else(Default::default, |(name, floor)| {
            (name.replace('|', "\\|"), number(floor.value), self.range_of(floor))
        });
        let ratio = self.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let goal = self.goal.map_or(String::new(), |goal| goal.to_string());
        let mark = match self.reached() {
            Some(false) => " (missed)",
            _ => "",
        };
        format!(
            "| {} | {} | {} | {} | {floor} | {of_floor} | {name} | {ratio} | {goal}{mark} | {} |",
            self.name,
            self.unit,
            number(self.ours.value),
            self.range_of(&self.ours),
            self.samples
        )
    }

    pub const MARKDOWN_HEAD: &str = "| figure | unit | tl-init | its rounds | floor | its rounds | the floor is | ratio | goal | samples |\n|---|---|---|---|---|---|---|---|---|---|";

    pub fn json(&self) -> Value {
        let spread = |spread: &Spread| json!({"value": spread.value, "least": spread.least, "most": spread.most});
        json!({
            "group": self.group,
            "name": self.name,
            "unit": self.unit,
            "ours": spread(&self.ours),
            "floor": self.floor.as_ref().map(|(_, floor)| spread(floor)),
            "floor_name": self.floor.as_ref().map(|(name, _)| name),
            "ratio": self.ratio(),
            "goal": self.goal.map(|goal| goal.to_string()),
            "reached": self.reached(),
            "rounds": self.rounds,
            "samples": self.samples,
        })
    }

    /// The least and the greatest value of a single round, if there are several.
    fn range_of(&self, spread: &Spread) -> String {
        if self.rounds < 2 {
            return String::new();
        }
        format!("{} – {}", number(spread.least), number(spread.most))
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Goal::RatioAtMost(most) => write!(f, "≤ {most}×"),
            Goal::RatioAtLeast(least) => write!(f, "≥ {least}×"),
            Goal::AtMost(most) => write!(f, "≤ {most}"),
            Goal::AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

/// A number with four significant digits, and all digits before the decimal point.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = match magnitude {
        _ if magnitude == 0.0 => 0,
        _ if magnitude >= 1000.0 => 0,
        _ if magnitude >= 100.0 => 1,
        _ if magnitude >= 10.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: f64, floor: f64, goal: Goal) -> Figure {
        let exactly = |value| Spread { value, least: value, most: value };
        Figure {
            group: "run".to_owned(),
            name: "run, p50".to_owned(),
            unit: "ms",
            ours: exactly(ours),
            floor: Some(("fork", exactly(floor))),
            goal: Some(goal),
            rounds: 1,
            samples: 1,
        }
    }

    #[test]
    fn a_goal_is_reached_at_its_value() {
        for (ours, goal, reached) in [
            (1.2, Goal::RatioAtMost(1.2), true),
            (1.3, Goal::RatioAtMost(1.2), false),
            (0.75, Goal::RatioAtLeast(0.75), true),
            (0.7, Goal::RatioAtLeast(0.75), false),
            (3.0, Goal::AtMost(3.0), true),
            (3.1, Goal::AtMost(3.0), false),
            (2.9, Goal::AtLeast(3.0), false),
        ] {
            assert_eq!(figure(ours, 1.0, goal).reached(), Some(reached), "{ours} {goal}");
        }
        let without = Figure { floor: None, ..figure(1.0, 1.0, Goal::RatioAtMost(2.0)) };
        assert_eq!((without.ratio(), without.reached()), (None, Some(false)), "a ratio needs a floor");
    }

    #[test]
    fn numbers_have_four_significant_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.123_45, "0.123"),
            (1.234_5, "1.234"),
            (12.345, "12.35"),
            (123.45, "123.5"),
            (123_456.7, "123457"),
            (-2.5, "-2.500"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_figure_is_one_line_of_text_and_one_row_of_markdown() {
        let figure = figure(1.5, 1.0, Goal::RatioAtMost(1.2));
        assert!(figure.line().ends_with("1.50  ≤ 1.2× missed"), "{:?}", figure.line());
        assert_eq!(figure.markdown(), "| run, p50 | ms | 1.500 |  | 1.000 |  | fork | 1.50 | ≤ 1.2× (missed) | 1 |");
        let columns = Figure::MARKDOWN_HEAD.lines().map(|line| line.matches('|').count());
        assert!(columns.eq([11, 11]) && figure.markdown().matches('|').count() == 11);
        let piped = Figure { floor: Some(("cat | cat", figure.ours)), ..figure.clone() };
        assert!(piped.markdown().contains("| cat \\| cat |"), "{}", piped.markdown());
        assert_eq!(figure.json()["ratio"], 1.5);
    }
}
