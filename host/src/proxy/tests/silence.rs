//! Sandboxes that are suspended, stuck or gone when the request has been sent to them, and clients that send nothing more.

use std::io::{Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::{AUTH, Host, ReachError, read_head, tcp_service, wait_until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A host with a sandbox that is suspended as soon as a request has arrived: it answers once it is reached again. Its
/// connections are kept.
fn host_with_pauses() -> Host {
    let host = Host::start();
    let sandboxes = Arc::clone(&host.sandboxes);
    let addr = tcp_service(move |mut stream| {
        while stream.peek(&mut [0; 1]).is_ok_and(|read| read > 0) {
            let (resume, resumed) = mpsc::channel();
            // Before the head is read: what was reached for the request itself does not count.
            *sandboxes.on_reach.lock().unwrap() = Some(Box::new(move || resume.send(()).unwrap()));
            read_head(&stream);
            resumed.recv_timeout(super::TIMEOUT).unwrap();
            stream.write_all(OK).unwrap();
        }
    });
    host.add("env", addr, "secret", &[addr.port()]);
    host
}

#[test]
fn a_request_that_meets_a_pause_resumes_the_sandbox() {
    let host = host_with_pauses();
    let mut client = host.connect();
    assert_eq!(client.request("POST", "env", "/api/v1/processes/run", "", "{}").text(), "ok");
    assert_eq!(host.sandboxes.reached.load(SeqCst), 2, "for the request, and when there was no response");
    // A connection that was kept.
    assert_eq!(host.proxy.pool.count(), 1);
    assert_eq!(client.get("env", "/api/v1/health").text(), "ok");
    assert_eq!(host.sandboxes.reached.load(SeqCst), 4);
}

#[test]
fn a_port_whose_sandbox_is_paused_resumes_it() {
    let host = host_with_pauses();
    let port = host.sandboxes.by_name.lock().unwrap()["env"].as_ref().unwrap().exposed_ports[0];
    assert_eq!(host.connect().get(&format!("{port}-env"), "/").text(), "ok");
}

/// Never answers on the paths that are to be answered at once; answers the others when it is told to.
#[test]
fn only_a_request_that_is_answered_at_once_has_a_limit() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let addr = tcp_service(move |mut stream| {
        let (head, _) = read_head(&stream);
        if head.contains("/run ") || head.contains("/wait ") {
            gone.lock().unwrap().recv().unwrap();
            stream.write_all(OK).unwrap();
        } else {
            let _ = stream.read(&mut [0; 1]);
        }
    });
    let host = Host::start_with(|proxy| proxy.response_timeout = Duration::from_millis(100));
    host.add("env", addr, "secret", &[]);
    for (method, target) in [("POST", "/api/v1/processes/run"), ("GET", "/api/v1/processes/1/wait")] {
        let mut long = host.connect();
        long.send_request(method, "env", target, "", "");
        for (method, target) in
            [("POST", "/api/v1/processes"), ("GET", "/api/v1/processes"), ("DELETE", "/api/v1/pty/x")]
        {
            let reply = host.connect().request(method, "env", target, "", "");
            assert_eq!((reply.status, reply.code().as_str()), (500, "DAEMON_TIMEOUT"), "{method} {target}");
        }
        go.send(()).unwrap();
        assert_eq!(long.reply().text(), "ok");
    }
}

#[test]
fn a_sandbox_that_ends_or_cannot_be_resumed_is_not_waited_for() {
    let host = Host::start();
    let sandboxes = Arc::clone(&host.sandboxes);
    let addr = tcp_service(move |mut stream| {
        read_head(&stream);
        sandboxes.by_name.lock().unwrap().remove("env");
        let _ = stream.read(&mut [0; 1]);
    });
    host.add("env", addr, "secret", &[]);
    let reply = host.connect().request("POST", "env", "/api/v1/processes/run", "", "{}");
    assert_eq!((reply.status, reply.code().as_str()), (500, "BAD_RESPONSE"));
    assert!(reply.text().contains("may have executed the request: there is no sandbox"), "{}", reply.text());
}

/// While something else is done with the sandbox, such as a snapshot, the request waits.
#[test]
fn a_sandbox_that_is_busy_is_waited_for() {
    let host = Host::start();
    let sandboxes = Arc::clone(&host.sandboxes);
    let addr = tcp_service(move |mut stream| {
        read_head(&stream);
        let busy = |name: &str| Err(ReachError::NotReady(name.to_owned()));
        let before = sandboxes.by_name.lock().unwrap().insert("env".to_owned(), busy("env")).unwrap();
        let looks = sandboxes.reached.load(SeqCst);
        wait_until("it was looked at", || sandboxes.reached.load(SeqCst) > looks);
        sandboxes.by_name.lock().unwrap().insert("env".to_owned(), before);
        stream.write_all(OK).unwrap();
    });
    host.add("env", addr, "secret", &[]);
    assert_eq!(host.connect().request("POST", "env", "/api/v1/processes/run", "", "{}").text(), "ok");
}

#[test]
fn a_body_that_stands_still_ends_the_request_before_and_after_the_response_begins() {
    let addr = tcp_service(|mut stream| {
        let (head, _) = read_head(&stream);
        if head.starts_with("PUT /early ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegin").unwrap();
        }
        while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
    });
    let host = Host::start_with(|proxy| proxy.idle = Duration::from_millis(200));
    host.add("env", addr, "secret", &[]);
    let mut client = host.connect();
    client.send(format!("PUT /late HTTP/1.1\r\nHost: env\r\n{AUTH}Content-Length: 100\r\n\r\nsome"));
    assert_eq!(client.reply().status, 408);
    let mut client = host.connect();
    client.send(format!("PUT /early HTTP/1.1\r\nHost: env\r\n{AUTH}Content-Length: 100\r\n\r\nsome"));
    assert_eq!(client.head().status, 200);
    assert_eq!(client.chunk(), b"begin");
    assert!(client.is_cut());
    assert_eq!(client.buffer, b"", "the last chunk is missing");
    wait_until("no request is open", || host.numbers.read().open == 0);
}

#[test]
fn the_kernel_probes_each_client() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let addr = tcp_service(move |mut stream| {
        read_head(&stream);
        gone.lock().unwrap().recv().unwrap();
        stream.write_all(OK).unwrap();
    });
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    let mut client = host.connect();
    client.send_request("GET", "env", "/", "", "");
    // The addresses end with the port: that of the proxy is the local one.
    let ports = [host.server.local_addr().port(), client.stream.local_addr().unwrap().port()];
    let [local, remote] = ports.map(|port| format!(":{port:04X}"));
    wait_until("the timer of the probes runs for a minute at most", || {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        table.lines().any(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let is_it = columns.len() > 5 && columns[1].ends_with(&local) && columns[2].ends_with(&remote);
            // 2 is the timer of the probes; its time is in hundredths of a second.
            let time = is_it.then(|| columns[5].strip_prefix("02:")).flatten();
            time.is_some_and(|time| u64::from_str_radix(time, 16).unwrap() <= 6100)
        })
    });
    go.send(()).unwrap();
    assert_eq!(client.reply().text(), "ok");
}
