//! Clients without the token, and web pages: what they can find out and do, and what the log says about them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Options, Response, TIMEOUT, start_daemon, start_daemon_with, wait_until};

/// Sends a request exactly as given but for the `Host`, on a connection of its own.
fn send(daemon: &Daemon, method: &str, path: &str, headers: &str, body: &str) -> Response {
    let length = body.len();
    let request = format!(
        "{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    ResponseStream::send(daemon.connect(), request.as_bytes()).into_response(&format!("{method} {path} {headers:?}"))
}

/// The status and the body of a response, and its headers but for the time.
fn without_date(response: &Response) -> (u16, Vec<u8>, Vec<(String, String)>) {
    let headers = response.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date")).cloned();
    (response.status, response.body.clone(), headers.collect())
}

#[test]
fn without_the_token_every_answer_but_health_is_the_same() {
    let daemon = start_daemon();
    let body = json!({"command": "sleep", "args": ["4500"], "name": "secret", "restart": {"policy": "never"}});
    let pid = daemon.start_process(&body)["pid"].clone();
    let wrong = format!("Authorization: Bearer {}x\r\n", daemon.token);
    let right = send(&daemon, "GET", "/processes/secret", "", "");
    right.expect_error(401, "UNAUTHORIZED", "the token is missing or wrong");
    for headers in ["", &wrong, "Authorization: Basic eDp5\r\n", "Authorization: Bearer\r\n"] {
        for (method, path, body) in [
            ("GET", format!("/processes/{pid}"), ""),
            ("GET", "/processes/no-such-process".to_owned(), ""),
            ("GET", "/no/such/path".to_owned(), ""),
            ("PUT", "/processes".to_owned(), ""),
            ("GET", "/%ff".to_owned(), ""),
            ("POST", "/processes".to_owned(), "{\"command\":"),
            ("POST", "/processes/run".to_owned(), "{\"command\":\"true\"}"),
            ("PUT", "/files?path=/etc/passwd".to_owned(), "x"),
            ("GET", "/files?path=/no/such/file".to_owned(), ""),
            ("GET", "/metrics".to_owned(), ""),
            ("GET", "/tunnels/tcp?port=1".to_owned(), ""),
            ("POST", "/shutdown".to_owned(), "{}"),
        ] {
            let response = send(&daemon, method, &path, headers, body);
            assert_eq!(without_date(&response), without_date(&right), "{method} {path} {headers:?}");
        }
    }
    assert_eq!(send(&daemon, "GET", "/health", "", "").status, 200);
    assert_eq!(daemon.list().len(), 1, "nothing was started");
}

#[test]
fn rejected_requests_are_logged_with_the_address_of_the_client_and_limited() {
    let begun = Instant::now();
    let daemon = start_daemon();
    let rejected = || daemon.log().lines().filter(|line| line.contains("was rejected: ")).count();
    send(&daemon, "GET", "/processes", "", "").expect(401);
    send(&daemon, "POST", "/processes", "Authorization: Bearer a-guess-of-the-token\r\n", "{}").expect(401);
    for line in [
        "WARN  a request from 127.0.0.1:PORT was rejected: it has no token",
        "WARN  a request from 127.0.0.1:PORT was rejected: its token is wrong",
    ] {
        let (before, after) = line.split_once("PORT").unwrap();
        let log = daemon.log();
        let found = log.lines().filter_map(|line| line.split_once(before)?.1.strip_suffix(after)).collect::<Vec<_>>();
        assert!(matches!(&found[..], [port] if port.parse::<u16>().is_ok()), "{line}: {log}");
    }
    let terminal = daemon.post("/pty", &json!({"command": "sleep", "args": ["4510"]})).expect(201);
    let attach = format!("/pty/{}/ws?token=a-guess-of-the-token", terminal["session_id"].as_str().unwrap());
    send(&daemon, "GET", &attach, "", "").expect(403);
    wait_until(TIMEOUT, "it is logged", || {
        daemon.log().contains("its token is not that of the terminal session").then_some(())
    });
    for _ in 0..200 {
        send(&daemon, "GET", "/processes", "", "").expect(401);
    }
    // 20 at once, and two each second; one more each for the first seconds of the daemon.
    let most = 20 + 2 * (begun.elapsed().as_secs() as usize + 2);
    assert!((20..=most).contains(&rejected()), "{} lines, not 20 to {most}", rejected());
    let log = daemon.log();
    assert!(!log.contains("a-guess-of-the-token") && !log.contains(&daemon.token), "{log}");
}

/// The lines that are left out of the log are counted, and their number is written with the first request that is
/// rejected 10 s later.
#[test]
fn the_log_says_how_many_rejected_requests_it_has_left_out() {
    let daemon = start_daemon_with(&["--log-format", "json"]);
    let mut sent = 0;
    let mut reject = || {
        send(&daemon, "GET", "/processes", "", "").expect(401);
        sent += 1;
    };
    let logged = |event: &str| -> Vec<Value> {
        let lines = daemon.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>();
        lines.into_iter().filter(|line| line["event"] == event).collect()
    };
    (0..100).for_each(|_| reject());
    let begun = Instant::now();
    assert!(logged("http.rejections_left_out").is_empty());
    let summary = wait_until(TIMEOUT, "the number of lines that were left out is logged", || {
        // More than two requests each second, so that some are left out until the end.
        std::thread::sleep(Duration::from_millis(100));
        reject();
        logged("http.rejections_left_out").pop()
    });
    assert!(begun.elapsed() > Duration::from_secs(9), "{:?}", begun.elapsed());
    let (count, lines) = (summary["count"].as_u64().expect("a number"), logged("http.rejected").len() as u64);
    assert_eq!(count + lines, sent, "each request is in the log once: {summary}");
    assert!(lines < 100, "{lines}");
    assert_eq!((&summary["level"], &summary["address"]), (&json!("warn"), &json!("127.0.0.1")));
    let message = format!("{count} more requests from 127.0.0.1 were rejected");
    assert_eq!(summary["message"], message, "{summary}");
}

#[test]
fn the_host_of_a_request_gives_no_rights_and_takes_none() {
    let daemon = start_daemon();
    let request = |authorization: &str| {
        let bytes = format!(
            "GET /api/v1/info HTTP/1.1\r\nHost: rebound.example:80\r\nOrigin: http://rebound.example\r\nConnection: close\r\n{authorization}\r\n"
        );
        ResponseStream::send(daemon.connect(), bytes.as_bytes()).into_response("GET /info of another host").status
    };
    assert_eq!(request(""), 401);
    assert_eq!(request(&format!("Authorization: Bearer {}\r\n", daemon.token)), 200);
}

#[test]
fn a_page_of_another_site_cannot_use_an_api_without_a_token() {
    let daemon = Options::default().args(&["--no-auth", "--cors-origin", "http://app.example"]).start();
    let run = r#"{"command":"touch","args":["/tmp/a-page-was-here"]}"#;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for site in ["cross-site", "same-site"] {
        // As a browser sends it for a form, an image, a script and a WebSocket of a page.
        let headers = format!("Sec-Fetch-Site: {site}\r\nOrigin: http://evil.example\r\nContent-Type: text/plain\r\n");
        let refused = |response: Response| response.expect_error(403, "PERMISSION_DENIED", "--cors-origin");
        refused(send(&daemon, "POST", "/processes/run", &headers, run));
        refused(send(&daemon, "GET", "/processes", &format!("Sec-Fetch-Site: {site}\r\n"), ""));
        refused(send(&daemon, "GET", "/tunnels/tcp?port=22", &format!("{upgrade}{headers}"), ""));
        // The headers that a listed origin gets are not those that the description of the API is compared with.
        let listed = format!("Connection: close\r\nSec-Fetch-Site: {site}\r\nOrigin: http://app.example\r\n");
        let listed = daemon.request_head("GET", "/processes", &listed);
        let response = ResponseStream::try_send(daemon.connect(), &listed).expect("a response");
        assert_eq!(response.status, 200, "a listed origin");
    }
    assert_eq!(daemon.list().len(), 0, "nothing was started");
    assert!(daemon.log().contains("was rejected: it is from a web page of another site"), "{}", daemon.log());
    // Not from a page of another site: typed by the user, of a page of the API itself, or not from a browser.
    for headers in
        ["Sec-Fetch-Site: none\r\n", "Sec-Fetch-Site: same-origin\r\n", "", "Origin: http://evil.example\r\n"]
    {
        assert_eq!(send(&daemon, "GET", "/processes", headers, "").status, 200, "{headers:?}");
    }
    // Chromium sends no `Sec-Fetch-Site` with a WebSocket. Nothing listens on port 1: a tunnel that is allowed is a 502.
    for (origin, right) in [
        ("Origin: http://evil.example\r\n", 403),
        ("Origin: http://x:1\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Origin: http://x\r\n", 502),
        ("Origin: http://app.example\r\n", 502),
        ("", 502),
    ] {
        let head = format!("GET /api/v1/tunnels/tcp?port=1 HTTP/1.1\r\nHost: x\r\n{upgrade}{origin}\r\n");
        let response = ResponseStream::try_send(daemon.connect(), &head).expect("a response");
        assert_eq!(response.status, right, "{origin:?}");
    }
    // With a token, what the browser says makes no difference: a page does not have the token.
    let with_token = start_daemon();
    let headers = format!("Sec-Fetch-Site: cross-site\r\nAuthorization: Bearer {}\r\n", with_token.token);
    assert_eq!(send(&with_token, "GET", "/processes", &headers, "").status, 200);
    assert_eq!(send(&with_token, "GET", "/processes", "Sec-Fetch-Site: same-origin\r\n", "").status, 401);
}
