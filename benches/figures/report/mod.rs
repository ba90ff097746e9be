//! The report of the benchmarks: figures and tables, printed as they are measured, and written as JSON and Markdown.
//!
//! Measures nothing itself. `cargo test --test figures_report` runs the unit tests of this directory.

#![allow(unreachable_pub, missing_docs, dead_code)]

mod figure;
mod plot;
mod statistics;

pub use figure::{Figure, Goal, Pair, number};
pub use plot::{Curve, distribution};
pub use statistics::{Rounds, Spread, percentile};

use serde_json::{Value, json};

/// A small table: how a cost grows.
#[derive(Clone, Debug)]
pub struct Table {
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    /// The group that is being measured.
    pub group: String,
    pub figures: Vec<Figure>,
    pub tables: Vec<Table>,
}

/// The lines of a document between which [`Report::markdown`] goes.
const BEGIN: &str = "<!-- figures: written by `make bench ARGS=\"--markdown FILE\"` -->";
const END: &str = "<!-- end of figures -->";

impl Report {
    pub fn print_head(&self) {
        println!("{:<50} {:<6} {:>10} {:>19} {:>10} {:>7}  goal", "", "unit", "tl-init", "rounds", "floor", "ratio");
    }

    /// Adds and prints a figure.
    pub fn add(&mut self, figure: Figure) {
        println!("{}", figure.line());
        self.figures.push(figure);
    }

    /// Adds and prints percentiles of the samples of a pair, each with the goal beside it.
    pub fn latency(
        &mut self,
        name: &str,
        unit: &'static str,
        pair: &Pair,
        floor: &'static str,
        wanted: &[(f64, Option<Goal>)],
    ) {
        for &(percent, goal) in wanted {
            let name = format!("{name}, p{percent}");
            self.percentile(&name, unit, &pair.ours, percent, Some((floor, &pair.floor)), goal);
        }
    }

    /// Adds and prints the median of a pair.
    pub fn median(&mut self, name: &str, unit: &'static str, pair: &Pair, floor: &'static str, goal: Option<Goal>) {
        self.percentile(name, unit, &pair.ours, 50.0, Some((floor, &pair.floor)), goal);
    }

    /// Adds and prints one value, which may have a floor.
    pub fn value(&mut self, name: &str, unit: &'static str, value: f64, goal: Option<Goal>) {
        let mut rounds = Rounds::default();
        rounds.push(vec![value]);
        self.percentile(name, unit, &rounds, 50.0, None, goal);
    }

    /// Adds and prints a percentile of samples; says so if there are none.
    pub fn percentile(
        &mut self,
        name: &str,
        unit: &'static str,
        ours: &Rounds,
        percent: f64,
        floor: Option<(&'static str, &Rounds)>,
        goal: Option<Goal>,
    ) {
        let Some(value) = ours.percentile(percent) else { return println!("{name}: nothing was measured") };
        self.add(Figure {
            group: self.group.clone(),
            name: name.to_owned(),
            unit,
            ours: value,
            floor: floor.and_then(|(name, floor)| Some((name, floor.percentile(percent)?))),
            goal,
            rounds: ours.rounds(),
            samples: ours.samples(),
        });
    }

    /// Adds and prints a table.
    pub fn table(&mut self, title: &str, columns: &[&str], rows: Vec<Vec<String>>) {
        println!("\n{title}");
        let line = |cells: Vec<&str>| cells.iter().map(|cell| format!("{cell:>16}")).collect::<String>();
        println!("{}", line(columns.to_vec()));
        rows.iter().for_each(|row| println!("{}", line(row.iter().map(String::as_str).collect())));
        println!();
        let columns = columns.iter().map(ToString::to_string).collect();
        self.tables.push(Table { title: title.to_owned(), columns, rows });
    }

    pub fn json(&self, machine: &[(&'static str, String)]) -> Value {
        let machine: serde_json::Map<String, Value> =
            machine.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let tables = self.tables.iter();
        let tables = tables.map(|table| json!({"title": table.title, "columns": table.columns, "rows": table.rows}));
        json!({
            "machine": machine,
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
            "tables": tables.collect::<Vec<_>>(),
        })
    }

    /// The figures of each group as a Markdown table, and all tables.
    pub fn markdown(&self, machine: &[(&'static str, String)]) -> String {
        let mut text = "Measured on this machine:\n\n".to_owned();
        machine.iter().for_each(|(key, value)| text += &format!("- {key}: {value}\n"));
        let mut group = "";
        for figure in &self.figures {
            if figure.group != group {
                group = &figure.group;
                text += &format!("\n### {group}\n\n{}\n", Figure::MARKDOWN_HEAD);
            }
            text += &format!("{}\n", figure.markdown());
        }
        for table in &self.tables {
            let rule = "|---".repeat(table.columns.len());
            text += &format!("\n### {}\n\n| {} |\n{rule}|\n", table.title, table.columns.join(" | "));
            table.rows.iter().for_each(|row| text += &format!("| {} |\n", row.join(" | ")));
        }
        text
    }
}

/// Puts `figures` between the marks of a document, or takes it as the whole document if there are none.
pub fn insert_into(document: &str, figures: &str) -> String {
    match document.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1))) {
        Some((before, after)) => format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", figures.trim()),
        None => figures.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report { group: "run".to_owned(), ..Report::default() };
        let mut pair = Pair::default();
        for (ours, floor) in [(2.0, 1.0), (4.0, 2.0), (3.0, 1.5)] {
            pair.ours.push(vec![ours]);
            pair.floor.push(vec![floor]);
        }
        let wanted = [(50.0, Some(Goal::RatioAtMost(2.0))), (99.0, None)];
        report.latency("run", "ms", &pair, "fork", &wanted);
        report.table("Growth", &["processes", "run"], vec![vec!["10".to_owned(), "1.2".to_owned()]]);
        report
    }

    #[test]
    fn a_report_has_the_same_figures_as_json_and_as_markdown() {
        let machine = [("cpus", "2".to_owned())];
        let json = report().json(&machine);
        assert_eq!(json["machine"]["cpus"], "2");
        assert_eq!(json["figures"][0]["name"], "run, p50");
        assert_eq!(json["figures"][0]["ours"], json!({"value": 3.0, "least": 2.0, "most": 4.0}));
        assert_eq!(json["figures"][0]["reached"], true);
        assert_eq!(json["figures"][1]["ours"]["value"], 4.0);
        assert_eq!(json["tables"][0]["rows"][0][1], "1.2");
        let markdown = report().markdown(&machine);
        for line in [
            "### run",
            "| run, p50 | ms | 3.000 | 2.000 – 4.000 | 1.500 | 1.000 – 2.000 | fork | 2.00 | ≤ 2× | 3 |",
            "| 10 | 1.2 |",
        ] {
            assert!(markdown.lines().any(|own| own == line), "{line}: {markdown}");
        }
    }

    #[test]
    fn figures_replace_those_between_the_marks_of_a_document() {
        let document = format!("# Title\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n");
        let new = insert_into(&document, "new\n");
        assert_eq!(new, format!("# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"));
        assert_eq!(insert_into(&new, "new"), new, "the marks stay");
        assert_eq!(insert_into("no marks", "new"), "new");
    }

    #[test]
    fn a_figure_without_samples_is_left_out() {
        let mut report = Report::default();
        report.percentile("nothing", "ms", &Rounds::default(), 50.0, None, None);
        assert!(report.figures.is_empty());
    }
}
