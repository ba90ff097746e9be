//! The report of a soak: what it printed of a violation, and the summary in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::client::{Client, Shared};

/// Everything about a violation that helps to explain it.
pub fn violation(client: &Client, what: &str) -> String {
    let mut text = format!(
        "VIOLATION: seed {}, client {}, round {}, operation {}\n  {what}\n",
        client.shared.seed, client.number, client.round, client.operation
    );
    let process = client.processes.iter().find(|process| client.current.as_ref() == Some(&process.tag));
    if let Some(process) = process {
        let _ = writeln!(text, "history of {}, handle {}:", process.tag, process.handle);
        process.history.iter().for_each(|line| {
            let _ = writeln!(text, "  {line}");
        });
        let _ = writeln!(text, "  what its runs have counted: {:?}", client.shared_progress(&process.tag));
    }
    let _ = writeln!(text, "last operations of the client:");
    client.history.iter().for_each(|line| {
        let _ = writeln!(text, "  {line}");
    });
    text
}

/// How to repeat the round of a violation.
pub fn how_to_repeat(shared: &Shared, round: u64, operations: u64) -> String {
    format!(
        "to repeat: make soak ARGS=\"--seed {} --clients {} --operations {operations} --round {round}\"",
        shared.seed, shared.clients
    )
}

fn row(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "| {name} | {value} |");
}

fn table(text: &mut String, title: &str, counts: &BTreeMap<&'static str, u64>) {
    let _ = writeln!(text, "\n| {title} | count |\n|---|---|");
    counts.iter().for_each(|(name, count)| row(text, name, count));
    row(text, "all", counts.values().sum::<u64>());
}

/// The summary, in Markdown.
pub fn summary(shared: &Shared, took: Duration, rounds: u64, memories: &[u64], violations: usize) -> String {
    let tally = &shared.tally;
    let operations = tally.operations();
    let mut text = String::from("\n| soak | |\n|---|---|\n");
    row(&mut text, "seconds", took.as_secs());
    row(&mut text, "seed", shared.seed);
    row(&mut text, "clients", shared.clients);
    row(&mut text, "rounds", rounds);
    row(&mut text, "operations", operations.values().sum::<u64>());
    row(&mut text, "faults", tally.faults().values().sum::<u64>());
    row(&mut text, "bytes checked", tally.bytes.load(Ordering::Relaxed));
    row(&mut text, "starts", shared.faults.starts.load(Ordering::SeqCst));
    let slowest = Duration::from_micros(tally.slowest_health.load(Ordering::Relaxed));
    row(&mut text, "health checks", tally.health_checks.load(Ordering::Relaxed));
    row(&mut text, "slowest health check", format_args!("{slowest:?}"));
    let memory = (memories.first().unwrap_or(&0), memories.iter().max().unwrap_or(&0), memories.last().unwrap_or(&0));
    row(&mut text, "resident memory after the first, largest, last round", format_args!("{memory:?} KiB"));
    row(&mut text, "violations", violations);
    table(&mut text, "operation", &operations);
    table(&mut text, "fault", &tally.faults());
    table(&mut text, "allowed loss", &tally.losses());
    text
}
