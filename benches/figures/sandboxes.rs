//! Figures of tl-host: the life of a sandbox, and what its proxy costs beside a direct connection to the same tl-init.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::{Bench, megabytes_per_second, milliseconds};
use crate::client::Client;
use crate::files::send_zeros;
use crate::floors::{drain, read_some};
use crate::harness::response::ResponseStream;
use crate::harness::{procfs, wait_until_still};
use crate::host::{Way, start};
use crate::host_harness::{Host, IMAGE, wait_until};
use crate::report::{Goal, Pair, Rounds};

/// Creates a sandbox, and runs `/bin/true` in it; the sandbox and the time.
fn create_and_run(host: &Host) -> (String, f64) {
    let mut id = String::new();
    let time = milliseconds(|| {
        id = host.create(json!({}));
        let mut client = Way::by_proxy(host, &id).client();
        let request = client.run_true();
        client.run(&request);
    });
    (id, time)
}

fn delete(host: &Host, id: &str) {
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
}

/// Waits for a container that is ready for the next sandbox.
fn wait_for_warm(host: &Host) {
    wait_until("a container that is ready", || {
        let page = host.request("GET", "/metrics", None).body;
        page.as_str().is_some_and(|page| page.lines().any(|line| line == "tl_host_warm_containers 1")).then_some(())
    });
}

/// From the request for a sandbox to the end of its first run, and the time of its deletion. The floor is a container of
/// the same image that the engine runs and removes.
pub fn life(bench: &mut Bench) {
    let (Some(cold), Some(warm)) = (start(&[]), start(&["--warm", "1"])) else { return };
    let (mut created, mut taken, mut deleted) = (Pair::default(), Pair::default(), Rounds::default());
    let count = bench.count(4, 1);
    let (id, _) = create_and_run(&cold);
    delete(&cold, &id);
    for _ in 0..bench.options.rounds {
        let (mut of_image, mut of_pool, mut of_engine, mut ends) = (vec![], vec![], vec![], vec![]);
        for _ in 0..count {
            let (id, time) = create_and_run(&cold);
            of_image.push(time);
            ends.push(milliseconds(|| delete(&cold, &id)));
            of_engine.push(milliseconds(|| cold.podman().run(&["run", "--rm", IMAGE, "true"])));
            wait_for_warm(&warm);
            let (id, time) = create_and_run(&warm);
            of_pool.push(time);
            // The next one is made meanwhile: it must not slow down what is measured.
            wait_for_warm(&warm);
            delete(&warm, &id);
        }
        created.ours.push(of_image);
        created.floor.push(of_engine.clone());
        taken.ours.push(of_pool);
        taken.floor.push(of_engine);
        deleted.push(ends);
    }
    let floor = "podman run --rm IMAGE true";
    let report = &mut bench.report;
    let within = |most| Some(Goal::AtMost(most));
    report.latency("create, and run /bin/true", "ms", &created, floor, &[(50.0, within(1000.0)), (90.0, None)]);
    report.latency("the same with --warm", "ms", &taken, floor, &[(50.0, within(100.0)), (90.0, None)]);
    report.percentile("delete a sandbox, p50", "ms", &deleted, 50.0, None, within(1000.0));
}

/// A job through the proxy and directly, in turns.
fn in_turns(bench: &Bench, count: usize, clients: &mut [Client; 2], job: impl Fn(&mut Client)) -> Pair {
    let mut pair = Pair::default();
    for _ in 0..bench.options.rounds {
        let mut times = [vec![], vec![]];
        for _ in 0..count {
            for (client, times) in clients.iter_mut().zip(&mut times) {
                times.push(milliseconds(|| job(client)));
            }
        }
        let [by_proxy, direct] = times;
        pair.ours.push(by_proxy);
        pair.floor.push(direct);
    }
    pair
}

/// What the proxy adds to a run and to `GET /health`.
pub fn requests(bench: &mut Bench) {
    let Some(host) = start(&[]) else { return };
    let ways = Way::both(&host, &host.create(json!({})));
    let mut clients = ways.each_ref().map(Way::client);
    let run = |client: &mut Client| {
        let request = client.run_true();
        client.run(&request);
    };
    let ask = |client: &mut Client| {
        let request = client.prepare("GET", "/health", &Value::Null);
        client.exchange(&request, "200");
    };
    for _ in 0..bench.count(100, 2) {
        clients.iter_mut().for_each(run);
        clients.iter_mut().for_each(ask);
    }
    let runs = in_turns(bench, bench.count(400, 5), &mut clients, run);
    let asked = in_turns(bench, bench.count(1_000, 5), &mut clients, ask);
    for (name, pair, goal) in [("run /bin/true", runs, Some(Goal::AtMost(1.0))), ("GET /health", asked, None)] {
        let report = &mut bench.report;
        let name_of_both = format!("{name} through the proxy");
        report.latency(&name_of_both, "ms", &pair, "direct", &[(50.0, None), (99.0, None)]);
        let p50 = |rounds: &Rounds| rounds.percentile(50.0).map_or(f64::NAN, |spread| spread.value);
        report.value(&format!("{name}: added by the proxy, p50"), "ms", p50(&pair.ours) - p50(&pair.floor), goal);
    }
}

/// Throughput of a job of `bytes` bytes through the proxy and directly, in turns.
fn throughput(bench: &Bench, ways: &[Way; 2], bytes: usize, job: impl Fn(&Way)) -> Pair {
    let speed = |way: &Way| vec![megabytes_per_second(bytes, milliseconds(|| job(way)))];
    bench.rounds(|| speed(&ways[0]), || speed(&ways[1]))
}

/// Throughput of uploads, downloads and tunnels.
pub fn bytes(bench: &mut Bench) {
    let Some(host) = start(&[]) else { return };
    let ways = Way::both(&host, &host.create(json!({})));
    let size = bench.count(256 << 20, 1 << 20);
    let path = "/files?path=/tmp/large";
    let half = Some(Goal::RatioAtLeast(0.5));
    let put = |way: &Way| {
        let mut socket = way.send_head("PUT", path, &format!("Content-Length: {size}\r\n"));
        send_zeros(&mut socket, size);
        assert_eq!(ResponseStream::read(socket).expect("a response").status, 204);
    };
    put(&ways[1]);
    let pair = throughput(bench, &ways, size, put);
    bench.report.median("upload of 256 MiB through the proxy", "MB/s", &pair, "direct", half);
    let pair = throughput(bench, &ways, size, |way| {
        let socket = way.send_head("GET", path, "");
        let response = ResponseStream::read(socket).expect("a response").expect_status(200);
        assert_eq!(drain(response), size);
    });
    bench.report.median("download of 256 MiB through the proxy", "MB/s", &pair, "direct", half);
    let blocks = size >> 18;
    let script = format!("nc -ll -p 7001 -e dd if=/dev/zero bs=262144 count={blocks} 2>/dev/null");
    ways[1].ask("POST", "/processes", &json!({"command": "sh", "args": ["-c", script]}), 201);
    wait_for_service(&ways[1], 7001);
    let pair = throughput(bench, &ways, size, |way| {
        // The client may have read the first bytes together with the response to its handshake.
        read_at_least(way.web_socket("/tunnels/tcp?port=7001", ""), size - (64 << 10));
    });
    bench.report.median("tunnel of 256 MiB through the proxy", "MB/s", &pair, "direct", half);
}

fn wait_for_service(way: &Way, port: u16) {
    wait_until("the service to listen", || {
        let upgrade = crate::harness::websocket::UPGRADE;
        let socket = way.send_head("GET", &format!("/tunnels/tcp?port={port}"), upgrade);
        (ResponseStream::read(socket).expect("a response").status == 101).then_some(())
    });
}

fn read_at_least(mut socket: TcpStream, mut left: usize) {
    let mut block = vec![0; 256 << 10];
    while left > 0 {
        let got = read_some(&mut socket, &mut block);
        assert!(got > 0, "the connection ended early");
        left = left.saturating_sub(got);
    }
}

/// Memory of tl-host for WebSockets that carry nothing: clients of terminals in two sandboxes, as one tl-init has not so
/// many connections.
pub fn idle_web_sockets(bench: &mut Bench) {
    let Some(host) = start(&[]) else { return };
    let still = bench.duration(Duration::from_secs(3));
    let resident = || {
        let pid = i32::try_from(host.pid()).expect("a PID");
        wait_until_still(still, "the memory of tl-host does not change", || procfs::kilobytes(pid, "VmRSS"))
    };
    let count = bench.count(1_000, 10);
    let sessions: Vec<(Way, String, String)> = (0..2)
        .map(|_| {
            let way = Way::by_proxy(&host, &host.create(json!({})));
            let session = way.ask("POST", "/pty", &json!({"command": "cat"}), 201);
            let text = |name: &str| session[name].as_str().expect("a text").to_owned();
            let (path, token) = (format!("/pty/{}/ws", text("session_id")), text("token"));
            (way, path, format!("X-PTY-Token: {token}\r\n"))
        })
        .collect();
    let before = resident();
    let open = |index: usize| {
        let (way, path, token) = &sessions[index % 2];
        way.web_socket(path, token)
    };
    let _open: Vec<TcpStream> = (0..count).map(open).collect();
    let after = resident();
    let mib = |kilobytes: u64| kilobytes as f64 / 1024.0;
    bench.report.value("memory of tl-host, two sandboxes (VmRSS)", "MiB", mib(before), None);
    let name = format!("memory for {count} idle WebSockets");
    bench.report.value(&name, "MiB", mib(after.saturating_sub(before)), Some(Goal::AtMost(40.0)));
}
