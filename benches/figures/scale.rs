//! Figures of requests to a daemon with 3,400 processes, or as many as it accepts, beside the same requests to one with
//! ten.

use serde_json::{Value, json};

use crate::bench::{Bench, daemon_for_many, milliseconds};
use crate::client::{Client, start_until};
use crate::harness::Daemon;
use crate::report::Goal;

/// A kind of request to one daemon: the time of one, in milliseconds.
pub type Job<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// The kinds of requests that are measured.
pub const KINDS: [&str; 5] = ["get", "signal", "run", "start", "kill"];

/// The job of one of [`KINDS`], on a new connection. `pid` is a running process.
pub fn job<'a>(kind: &str, daemon: &'a Daemon, pid: u64) -> Job<'a> {
    let mut client = Client::new(daemon);
    let request = match kind {
        "get" => client.prepare("GET", &format!("/processes/{pid}"), &Value::Null),
        // SIGCONT, which changes nothing.
        "signal" => client.prepare("POST", &format!("/processes/{pid}/signal"), &json!({"signal": 18})),
        "run" => client.run_true(),
        _ => client.start_sleep(),
    };
    match kind {
        "start" => Box::new(move || {
            let mut pid = 0;
            let time = milliseconds(|| pid = client.start(&request));
            client.delete(pid);
            time
        }),
        "kill" => Box::new(move || {
            let pid = client.start(&request);
            let request = client.prepare("DELETE", &format!("/processes/{pid}"), &Value::Null);
            milliseconds(|| client.exchange(&request, "204").len())
        }),
        _ => Box::new(move || milliseconds(|| client.exchange(&request, "200").len())),
    }
}

/// Time to list all processes, in milliseconds.
pub fn list(client: &mut Client) -> f64 {
    let request = client.prepare("GET", "/processes", &Value::Null);
    milliseconds(|| client.exchange(&request, "200").len())
}

/// Requests with many processes, beside the same with ten.
pub fn many_processes(bench: &mut Bench) {
    let (large, small) = (daemon_for_many(10).start(), daemon_for_many(10).start());
    let (mut of_large, mut of_small) = (Vec::new(), Vec::new());
    start_until(&small, &mut of_small, 10);
    start_until(&large, &mut of_large, bench.count(3_400, 20));
    of_large.drain(of_large.len() - 5..).for_each(|pid| Client::new(&large).delete(pid));
    let many = of_large.len();
    bench.report.value("processes", "", many as f64, None);
    let (pid_of_large, pid_of_small) = (of_large[many / 2], of_small[5]);
    for kind in KINDS {
        let (mut ours, mut floor) = (job(kind, &large, pid_of_large), job(kind, &small, pid_of_small));
        let count = if matches!(kind, "get" | "signal") { bench.count(2_000, 5) } else { bench.count(200, 3) };
        (0..count / 10).for_each(|_| {
            ours();
            floor();
        });
        let pair = bench.latencies(count, ours, floor);
        let goal = Some(Goal::RatioAtMost(1.2));
        let name = format!("{kind} with many processes");
        bench.report.latency(&name, "ms", &pair, "the same with 10", &[(50.0, goal), (99.0, None)]);
    }
    let (mut of_large, mut of_small) = (Client::new(&large), Client::new(&small));
    let ours = || list(&mut of_large) * 1e3 / many as f64;
    let pair = bench.latencies(bench.count(40, 2), ours, || list(&mut of_small) * 1e3 / 10.0);
    let goal = Some(Goal::RatioAtMost(1.2));
    bench.report.median("list of many processes, per entry", "µs", &pair, "the same with 10", goal);
}
