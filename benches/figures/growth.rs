//! How the cost grows: with the number of processes, of followers, and with the size of the output.

use crate::bench::{Bench, daemon_for_many, megabytes_per_second, milliseconds};
use crate::client::{Client, start_until};
use crate::harness::Options;
use crate::output::{daemon_for_output, follow, get_output, run_cat, write_lines};
use crate::report::{number, percentile};
use crate::scale::{KINDS, job, list};
use crate::usage::{memory_of, own_processes};

/// The median of `count` samples, as text.
fn median(count: usize, job: impl FnMut() -> f64) -> String {
    let mut samples: Vec<f64> = std::iter::repeat_with(job).take(count).collect();
    samples.sort_by(f64::total_cmp);
    percentile(&samples, 50.0).map_or(String::new(), number)
}

/// Three tables: the cost with more and more processes, followers and bytes.
pub fn growth(bench: &mut Bench) {
    processes(bench);
    followers(bench);
    output(bench);
}

fn processes(bench: &mut Bench) {
    let daemon = daemon_for_many(10).start();
    let mut pids = Vec::new();
    let mut rows = Vec::new();
    for count in [10, 100, 1_000, 4_000] {
        // One more process can be started then: the daemon may accept fewer than 4,000.
        start_until(&daemon, &mut pids, count.min(bench.count(4_000, 20)));
        if count == 4_000 {
            pids.drain(pids.len() - 5..).for_each(|pid| Client::new(&daemon).delete(pid));
        }
        let mut row = vec![pids.len().to_string()];
        for kind in KINDS {
            let mut job = job(kind, &daemon, pids[pids.len() / 2]);
            (0..bench.count(20, 1)).for_each(|_| _ = job());
            row.push(median(bench.count(200, 2), job));
        }
        let mut client = Client::new(&daemon);
        row.push(median(bench.count(20, 2), || list(&mut client)));
        let own = own_processes(daemon.pid);
        row.push(number(memory_of(&own).resident / 1024.0));
        rows.push(row);
    }
    let columns = ["processes", "get, ms", "signal, ms", "run, ms", "start, ms", "kill, ms", "list, ms", "memory, MiB"];
    bench.report.table("Cost with the number of processes (p50)", &columns, rows);
}

fn followers(bench: &mut Bench) {
    let daemon = Options::default().args(&["--max-connections", "1024"]).start();
    let lines = bench.count(5_000, 50);
    let rows = [1, 10, 100, 500].into_iter().map(|followers| {
        let followers = bench.count(followers, followers.min(3));
        let mut best = f64::MAX;
        let mut bytes = 0;
        for _ in 0..bench.count(3, 1) {
            let (seconds, each) = follow(&daemon, followers, lines);
            (best, bytes) = (best.min(seconds), each);
        }
        let speed = (followers * bytes) as f64 / 1e6 / best;
        let per_line = best * 1e6 / (followers * lines) as f64;
        vec![followers.to_string(), number(best * 1e3), number(per_line), number(speed)]
    });
    let rows = rows.collect();
    let columns = ["followers", "time, ms", "µs per line", "MB/s"];
    bench.report.table("5,000 lines to followers (best of 3)", &columns, rows);
}

fn output(bench: &mut Bench) {
    let sizes =
        [(1 << 10, "1 KiB"), (64 << 10, "64 KiB"), (1 << 20, "1 MiB"), (32 << 20, "32 MiB"), (1 << 30, "1 GiB")];
    let sizes = &sizes[..bench.count(sizes.len(), 2)];
    let daemon = daemon_for_output();
    let source = daemon.scratch().join("source");
    let rows = sizes.iter().map(|(bytes, name)| {
        write_lines(&source, *bytes);
        let times = if *bytes < 64 << 20 { 11 } else { 1 };
        let mut pid = 0;
        let capture = median(times, || milliseconds(|| pid = run_cat(&daemon, &source)));
        let raw = median(times, || milliseconds(|| assert_eq!(get_output(&daemon, pid, true), *bytes)));
        let mut last = 0.0;
        let json = median(times, || {
            last = milliseconds(|| get_output(&daemon, pid, false));
            last
        });
        vec![(*name).to_owned(), capture, raw, json, number(megabytes_per_second(*bytes, last))]
    });
    let rows = rows.collect();
    let columns = ["output", "run of cat, ms", "GET raw, ms", "GET JSON, ms", "JSON, MB/s"];
    bench.report.table("Cost with the size of the output (p50)", &columns, rows);
}
