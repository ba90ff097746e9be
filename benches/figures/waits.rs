//! Figures of waits: from what a process does to the answer of the wait for it.

use std::net::TcpListener;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::bench::{Bench, milliseconds};
use crate::client::Client;
use crate::harness::{Daemon, pid_of, start_daemon};
use crate::report::{Goal, Rounds};

/// Time after which the daemon looks for open ports as rarely as it ever does.
const RARELY: Duration = Duration::from_millis(600);

/// Latency of a wait for a line, and of a wait for a port.
pub fn latencies(bench: &mut Bench) {
    let daemon = start_daemon();
    let lines = bench.count(500, 5);
    let times = lines_until_answer(&daemon, lines);
    bench.report.percentile("line written to answer of the wait", "ms", &times, 50.0, None, Some(Goal::AtMost(2.0)));
    bench.report.percentile("line written to answer of the wait", "ms", &times, 99.0, None, None);
    let mut times = Rounds::default();
    times.push((0..bench.count(30, 1)).map(|_| listen_until_answer(&daemon)).collect());
    let name = "listen(2) to answer of the wait, worst";
    bench.report.percentile(name, "ms", &times, 100.0, None, Some(Goal::AtMost(300.0)));
}

/// Times from the writing of a line, which has the time, to the answer of a wait that had begun before.
fn lines_until_answer(daemon: &Daemon, count: usize) -> Rounds {
    let script =
        "import time\nfor n in range(10**9):\n print('mark', n, '', time.time_ns(), flush=True)\n time.sleep(.02)";
    let pid = pid_of(&daemon.start_process(&json!({"command": "python3", "args": ["-c", script]})));
    let mut next = 5;
    let mut time = || {
        let path = format!("/processes/{pid}/wait?for=line&contains=mark%20{next}%20");
        let met = daemon.get(&path).expect(200);
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("the time");
        let line = met["line"].as_str().expect("a line");
        let written: u64 = line.rsplit(' ').next().expect("a time").parse().expect("a number");
        let last = daemon.get(&format!("/processes/{pid}/stdout?tail=1")).expect(200);
        let last = last["lines"][0].as_str().and_then(|line| line.split(' ').nth(1)?.parse::<u64>().ok());
        next = last.expect("a number") + 3;
        now.saturating_sub(Duration::from_nanos(written)).as_secs_f64() * 1e3
    };
    let mut times = Rounds::default();
    times.push((0..count).map(|_| time()).collect());
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    times
}

/// Time from listen(2) to the answer of a wait that has lasted so long that the daemon looks rarely.
fn listen_until_answer(daemon: &Daemon) -> f64 {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut client = Client::new(daemon);
            let request = client.prepare("GET", &format!("/ports/{}/wait", free.port()), &Value::Null);
            client.exchange(&request, "200");
        });
        std::thread::sleep(RARELY);
        let _listener = TcpListener::bind(free).expect("bind the port");
        milliseconds(|| waiting.join().expect("the wait"))
    })
}
