//! Benchmarks of the daemon. Each figure is printed beside its floor: the time of the least work that any
//! implementation has to do, measured on the same machine in the same minute. Compare the ratios: absolute times depend
//! mostly on the machine.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs, dead_code)]

#[path = "../../tests/harness/mod.rs"]
mod harness;

mod files;
mod measure;
mod processes;
mod requests;
mod streams;

use harness::{Daemon, start_daemon};
use measure::row;

/// Measures and prints one group of figures. Several groups share a daemon.
type Figures = fn(&Daemon);

fn main() {
    println!("{:<44} {:>12} {:>12} {:>8}", "", "tl-init", "floor", "ratio");
    // `cargo bench --bench figures -- WORD` measures only the groups whose name contains WORD.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let of_a_daemon: [(&str, Figures); 5] = [
        ("requests", requests::latency),
        ("requests", requests::throughput),
        ("requests", requests::health),
        ("tunnel", streams::tunnel),
        ("terminal", streams::terminal),
    ];
    let wanted: Vec<_> = of_a_daemon.iter().filter(|(name, _)| name.contains(&only)).collect();
    if !wanted.is_empty() {
        let daemon = start_daemon();
        wanted.iter().for_each(|(_, figures)| figures(&daemon));
    }
    let others: [(&str, fn()); 6] = [
        ("capture", streams::capture),
        ("files", files::files),
        ("memory", processes::memory),
        ("crash", processes::crash_to_running),
        ("managed", processes::managed),
        ("start-up", processes::start_up),
    ];
    others.iter().filter(|(name, _)| name.contains(&only)).for_each(|(_, figures)| figures());
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_tl-init")).expect("the program").len();
    row("size of the stripped program, MB", size as f64 / 1e6, None);
}
