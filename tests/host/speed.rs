//! Guards against gross slowness: ten times the goals of `docs/performance.md`, for a machine that does other things.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Host, TIMEOUT, start_host, wait_until};

/// Runs `true` in a sandbox on a connection of its own; fails unless it exits with 0. `host` is the header `Host`.
fn run_true(addr: SocketAddr, host: &str, token: &str) {
    let body = r#"{"command":"true"}"#;
    let mut stream = TcpStream::connect(addr).expect("connect");
    stream.set_read_timeout(Some(TIMEOUT)).expect("set the timeout");
    let length = body.len();
    let request = format!(
        "POST /api/v1/processes/run HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("send the request");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("the whole response");
    assert!(response.contains("\"exit_code\":0"), "{response}");
}

fn run_by_proxy(host: &Host, id: &str) {
    let proxy = host.proxy.strip_prefix("http://").expect("a URL").parse().expect("an address");
    run_true(proxy, &format!("{id}.localhost"), &host.key);
}

/// The shortest of some repetitions: a busy machine delays one or another, but not each.
fn shortest(times: usize, mut job: impl FnMut() -> Duration) -> Duration {
    (0..times).map(|_| job()).min().expect("a time")
}

fn time_of(job: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    job();
    begun.elapsed()
}

#[test]
fn a_sandbox_is_there_within_ten_seconds_and_gone_within_ten() {
    let Some(host) = start_host(&[]) else { return };
    let mut deleted = Duration::MAX;
    let created = shortest(3, || {
        let begun = Instant::now();
        let id = host.create(json!({}));
        run_by_proxy(&host, &id);
        let took = begun.elapsed();
        let deletion = time_of(|| assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200));
        deleted = deleted.min(deletion);
        took
    });
    assert!(created < Duration::from_secs(10) && deleted < Duration::from_secs(10), "{created:?}, {deleted:?}");
}

#[test]
fn a_warm_sandbox_is_there_within_a_second() {
    let Some(host) = start_host(&["--warm", "1"]) else { return };
    let created = shortest(3, || {
        wait_until("a container that is ready", || {
            let page = host.request("GET", "/metrics", None).body;
            page.as_str()?.lines().any(|line| line == "tl_host_warm_containers 1").then_some(())
        });
        let begun = Instant::now();
        let id = host.create(json!({}));
        run_by_proxy(&host, &id);
        begun.elapsed()
    });
    assert!(created < Duration::from_secs(1), "{created:?}");
}

#[test]
fn the_proxy_adds_less_than_ten_milliseconds_to_a_run() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    let (addr, token) = (host.address_of(&id), host.token_of(&id));
    let mut direct = Duration::MAX;
    let by_proxy = shortest(50, || {
        direct = direct.min(time_of(|| run_true(addr, "direct", &token)));
        time_of(|| run_by_proxy(&host, &id))
    });
    assert!(by_proxy < direct + Duration::from_millis(10), "{by_proxy:?} through the proxy, {direct:?} direct");
}
