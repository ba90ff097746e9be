//! Benchmarks of the daemon. Each figure is printed beside its floor: the least work that any implementation has to do,
//! measured in the same rounds. Compare the ratios: absolute times depend mostly on the machine. `docs/performance.md`
//! says what each figure measures.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs, dead_code)]
// `use super::*` of unit tests, which this build leaves out: `cargo test --test figures_report` runs them.
#![allow(unused_imports)]

#[path = "../../tests/harness/mod.rs"]
mod harness;
#[path = "../../tests/host/harness.rs"]
mod host_harness;
#[path = "../../tests/host/podman.rs"]
mod podman;

mod beacon;
mod bench;
mod client;
mod events;
mod files;
mod floors;
mod growth;
mod host;
mod memory;
mod options;
mod output;
mod peers;
mod report;
mod runs;
mod sandboxes;
mod scale;
mod supervision;
mod terminals;
mod usage;
mod waits;

use beacon::Programs;
use bench::{Bench, machine};
use options::Options;
use report::{Report, insert_into};

/// A group of figures: its name, and what measures and reports them.
type Group = (&'static str, fn(&mut Bench));

/// All groups in the order of the report. Groups whose floor forks this program come first: later it has more memory, of
/// which a fork copies the page tables.
const GROUPS: [Group; 25] = [
    ("run", runs::run),
    ("runs per second", runs::runs_per_second),
    ("start", runs::start),
    ("crash", supervision::crash_to_running),
    ("capture", output::capture),
    ("listing of output", output::listing),
    ("followers", output::followers),
    ("events", events::starts),
    ("waits", waits::latencies),
    ("memory", memory::memory),
    ("memory after load", memory::growth_of_memory),
    ("start-up", supervision::start_up),
    ("health", runs::health),
    ("idle", memory::idle),
    ("many processes", scale::many_processes),
    ("managed", supervision::managed),
    ("tunnel", terminals::tunnel),
    ("terminal", terminals::terminal),
    ("files", files::files),
    ("tl-host sandboxes", sandboxes::life),
    ("tl-host requests", sandboxes::requests),
    ("tl-host bytes", sandboxes::bytes),
    ("tl-host memory", sandboxes::idle_web_sockets),
    ("peers", peers::peers),
    ("growth", growth::growth),
];

/// The group with this name, or else all groups whose name contains `word`.
fn select(word: &str) -> Vec<&'static Group> {
    let exactly = GROUPS.iter().find(|(name, _)| *name == word);
    exactly.map_or_else(|| GROUPS.iter().filter(|(name, _)| name.contains(word)).collect(), |group| vec![group])
}

fn main() {
    if std::env::args().nth(1).is_some_and(|arg| arg == floors::ECHO) {
        return floors::serve_echo();
    }
    let options = Options::from_command_line();
    // Cargo starts benchmarks in the directory of their package. Paths on the command line are relative to the
    // repository.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).expect("enter the repository");
    let groups = select(&options.word);
    if groups.is_empty() {
        eprintln!("no group of figures has {:?} in its name; --list prints all", options.word);
        std::process::exit(2);
    }
    if options.list {
        return groups.iter().for_each(|(name, _)| println!("{name}"));
    }
    for file in options.files() {
        // Found out now and not after minutes of measuring.
        if let Err(error) = std::fs::OpenOptions::new().create(true).append(true).open(file) {
            eprintln!("{}: {error}", file.display());
            std::process::exit(2);
        }
    }
    let machine = machine(&options);
    machine.iter().for_each(|(key, value)| println!("{key}: {value}"));
    let mut bench = Bench { options, report: Report::default(), programs: Programs::compile() };
    if bench.options.quick {
        println!(
            "This run only shows that the benchmarks work: its figures, and the numbers in their names, mean nothing."
        );
    }
    bench.report.print_head();
    for (name, measure) in groups {
        bench.report.group = (*name).to_owned();
        println!("{name}");
        let time = bench::milliseconds(|| measure(&mut bench)) / 1e3;
        println!("  ({time:.1} s)");
        // After each group, so that a failure of a later one loses nothing.
        write_files(&bench, &machine);
    }
}

/// Writes the files that the options name.
fn write_files(bench: &Bench, machine: &[(&'static str, String)]) {
    if let Some(file) = &bench.options.json {
        let text = serde_json::to_string_pretty(&bench.report.json(machine)).expect("JSON");
        std::fs::write(file, text + "\n").expect("write the JSON file");
    }
    if let Some(file) = &bench.options.markdown {
        let document = std::fs::read_to_string(file).unwrap_or_default();
        std::fs::write(file, insert_into(&document, &bench.report.markdown(machine))).expect("write the tables");
    }
}
