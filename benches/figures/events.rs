//! Figures of events: what clients that read them cost a client that starts processes.

use std::io::BufRead;
use std::sync::Barrier;

use serde_json::json;

use crate::bench::{Bench, milliseconds};
use crate::client::Client;
use crate::harness::{Daemon, start_daemon};
use crate::report::Goal;

/// Number of clients that read all events.
const STREAMS: usize = 100;

/// Rate of starts of `/bin/true`, one after the other, while clients read all events, beside the same without them.
/// Fails if a client misses an event without a gap that counts it.
pub fn starts(bench: &mut Bench) {
    let daemon = start_daemon();
    let count = bench.count(10_000, 50);
    let start = || {
        let mut client = Client::new(&daemon);
        let request = client.prepare("POST", "/processes", &json!({"command": "/bin/true"}));
        let time = milliseconds(|| {
            for _ in 0..count {
                client.start(&request);
            }
        });
        vec![count as f64 / time * 1e3]
    };
    start();
    let mut lost = 0;
    let pair = bench.rounds(
        || {
            let (rate, in_gaps) = while_streaming(&daemon, count, start);
            lost += in_gaps;
            rate
        },
        start,
    );
    let name = format!("starts per second, {STREAMS} streams of events");
    bench.report.median(&name, "1/s", &pair, "no stream", Some(Goal::RatioAtLeast(0.9)));
    bench.report.value("events in gaps, all streams together", "", lost as f64, None);
}

/// Does `job`, which starts `count` processes, while clients read all events. Waits until each client has read of all of
/// these starts. Returns the result of the job, and the number of events that were in gaps, of all clients together.
fn while_streaming<T>(daemon: &Daemon, count: usize, job: impl FnOnce() -> T) -> (T, u64) {
    let ready = Barrier::new(STREAMS + 1);
    std::thread::scope(|scope| {
        let read = || {
            let mut reader = daemon.events("", "").into_reader();
            ready.wait();
            read_until_started(&mut reader, count)
        };
        let clients: Vec<_> = (0..STREAMS).map(|_| scope.spawn(read)).collect();
        ready.wait();
        let result = job();
        (result, clients.into_iter().map(|client| client.join().expect("a client")).sum())
    })
}

/// Reads a stream of events until `count` processes have been started. Returns the number of events in gaps, which may
/// have been starts; fails if an event is missing without a gap that counts it.
fn read_until_started(reader: &mut impl BufRead, count: usize) -> u64 {
    let (mut line, mut next, mut started, mut in_gaps) = (String::new(), None, 0, 0);
    while started + in_gaps < count as u64 {
        let mut field = |name: &str| {
            line.clear();
            assert!(reader.read_line(&mut line).expect("read the stream") > 0, "the stream has ended");
            line.trim_end().strip_prefix(name).map(str::to_owned)
        };
        let Some(id) = field("id: ") else { continue };
        let id: u64 = id.parse().expect("the number of an event");
        let kind = field("event: ").expect("the type");
        let data = field("data: ").expect("the data");
        let lost = data.strip_prefix("{\"lost\":").and_then(|lost| lost.strip_suffix('}'));
        let lost = lost.map_or(0, |lost| lost.parse().expect("a number of events"));
        // The number of a gap is that of the last event in it.
        let first = if kind == "gap" { id + 1 - lost } else { id };
        assert!(next.is_none_or(|next| next == first), "{kind} {first} comes in place of event {next:?}");
        next = Some(id + 1);
        started += u64::from(kind == "process.started");
        in_gaps += lost;
    }
    in_gaps
}
