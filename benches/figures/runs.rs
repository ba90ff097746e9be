//! Figures of runs, of starts and of `GET /health`: short requests.

use serde_json::Value;

use crate::bench::{Bench, milliseconds, on_one_cpu, rate};
use crate::client::Client;
use crate::floors::{EchoService, end, fork_and_exec, fork_and_wait, own_cpu_time, round_trip, spawn_with_pipes};
use crate::harness::{Daemon, start_daemon};
use crate::report::{Curve, Goal, Pair, Rounds, distribution};
use crate::usage::cpu_with_children;

/// Latency of a run of `/bin/true` with one client.
pub fn run(bench: &mut Bench) {
    let daemon = start_daemon();
    let mut client = Client::new(&daemon);
    let request = client.run_true();
    (0..bench.count(300, 3)).for_each(|_| client.run(&request));
    let count = bench.count(600, 10);
    let pair = bench.latencies(count, || milliseconds(|| client.run(&request)), || milliseconds(fork_and_wait));
    let goals = [(50.0, Some(Goal::RatioAtMost(1.2))), (90.0, None), (99.0, Some(Goal::RatioAtMost(1.5)))];
    bench.report.latency("run /bin/true", "ms", &pair, "fork, setuid, exec, wait", &goals);
    if let Some(file) = &bench.options.svg {
        let (ours, floor) = (pair.ours.pooled(), pair.floor.pooled());
        let curves = [
            Curve { name: "POST /processes/run of /bin/true", ascending: &ours },
            Curve { name: "fork, setuid, exec and wait of /bin/true", ascending: &floor },
        ];
        let svg = distribution("Time of one run, beside the least that any supervisor needs", &curves);
        std::fs::write(file, svg).expect("write the plot");
    }
}

/// Runs per second and CPU time of each, with eight clients.
pub fn runs_per_second(bench: &mut Bench) {
    let daemon = start_daemon();
    let count = bench.count(2_000, 40);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::new(&daemon)).collect();
    let request = clients[0].run_true();
    let mut ours = |count: usize| rate(count, clients.iter_mut().map(|client| || client.run(&request)));
    ours(count / 4);
    let (mut cpu, mut floor_cpu) = (Rounds::default(), Rounds::default());
    let mut forked = Rounds::default();
    let pair = bench.rounds(
        || {
            let before = cpu_with_children(daemon.pid);
            let rate = ours(count);
            let used = cpu_with_children(daemon.pid) - before;
            cpu.push(vec![used.as_secs_f64() * 1e6 / count as f64]);
            vec![rate]
        },
        || {
            let before = own_cpu_time();
            let spawned = rate(count, [spawn_with_pipes; 8]);
            floor_cpu.push(vec![(own_cpu_time() - before).as_secs_f64() * 1e6 / count as f64]);
            forked.push(vec![rate(count / 2, [fork_and_wait; 8])]);
            vec![spawned]
        },
    );
    let name = "runs per second, 8 clients";
    let report = &mut bench.report;
    report.median(name, "1/s", &pair, "std's spawn with pipes, 8 threads", Some(Goal::RatioAtLeast(0.75)));
    let floor = ("fork, setuid, exec, wait, 8 threads", &forked);
    report.percentile(&format!("{name}, beside fork"), "1/s", &pair.ours, 50.0, Some(floor), None);
    let floor = ("std's spawn with pipes, 8 threads", &floor_cpu);
    report.percentile("CPU time of a run, 8 clients", "µs", &cpu, 50.0, Some(floor), Some(Goal::RatioAtMost(1.4)));
}

/// Time from the request to the response of a start of a process that stays. The processes of a batch are ended after all
/// of them have been started, so that the end of one does not disturb the start of the next.
pub fn start(bench: &mut Bench) {
    const AT_ONCE: usize = 40;
    let daemon = start_daemon();
    let mut client = Client::new(&daemon);
    let request = client.start_sleep();
    let mut ours = || {
        let (mut times, mut pids) = (Vec::new(), Vec::new());
        for _ in 0..AT_ONCE {
            times.push(milliseconds(|| pids.push(client.start(&request))));
        }
        pids.into_iter().for_each(|pid| client.delete(pid));
        times
    };
    let floor = || {
        let (mut times, mut children) = (Vec::new(), Vec::new());
        for _ in 0..AT_ONCE {
            times.push(milliseconds(|| children.push(fork_and_exec())));
        }
        children.into_iter().for_each(end);
        times
    };
    let batches = bench.count(8, 1);
    let pair =
        bench.rounds(|| (0..batches).flat_map(|_| ours()).collect(), || (0..batches).flat_map(|_| floor()).collect());
    let goals = [(50.0, Some(Goal::RatioAtMost(1.5))), (99.0, None)];
    bench.report.latency("start of a process that stays (201)", "ms", &pair, "fork, setuid, exec", &goals);
}

/// Latency and rate of `GET /health` on connections that are kept alive.
pub fn health(bench: &mut Bench) {
    let pair = on_one_cpu(|| latencies_of_health(bench));
    let goals = [(50.0, Some(Goal::RatioAtMost(1.5))), (99.0, None)];
    bench.report.latency("GET /health, one CPU", "ms", &pair, "loopback echo round trip", &goals);
    let pair = latencies_of_health(bench);
    let percentiles = [(50.0, None), (99.0, None)];
    bench.report.latency("GET /health, any CPU", "ms", &pair, "loopback echo round trip", &percentiles);
    let (daemon, echo) = (start_daemon(), EchoService::start());
    let mut clients: Vec<_> = (0..8).map(|_| ask_health(&daemon)).collect();
    let mut echoes: Vec<_> = (0..8).map(|_| round_trip(echo.addr)).collect();
    let count = bench.count(60_000, 80);
    let pair = bench.rounds(|| vec![rate(count, clients.iter_mut())], || vec![rate(count, echoes.iter_mut())]);
    let name = "GET /health per second, 8 clients";
    bench.report.median(name, "1/s", &pair, "loopback echo, 8 threads", Some(Goal::AtLeast(80_000.0)));
}

/// Latencies of `GET /health` and of a round trip to an echo service, with one client.
fn latencies_of_health(bench: &Bench) -> Pair {
    let (daemon, echo) = (start_daemon(), EchoService::start());
    let (mut ours, mut floor) = (ask_health(&daemon), round_trip(echo.addr));
    (0..bench.count(2_000, 5)).for_each(|_| {
        ours();
        floor();
    });
    bench.latencies(bench.count(8_000, 20), || milliseconds(&mut ours), || milliseconds(&mut floor))
}

/// A client that asks for the health of the daemon, again and again on one connection.
fn ask_health(daemon: &Daemon) -> impl FnMut() + Send + use<> {
    let mut client = Client::new(daemon);
    let request = client.prepare("GET", "/health", &Value::Null);
    let length = client.exchange(&request, "200").len();
    move || assert!(client.exchange_known(&request, length).ends_with(b"true}"))
}
