//! `--cors-origin`: what a browser needs to let a web page of another origin use the API (the Fetch standard, "HTTP-CORS
//! protocol"), and that nothing of it is there without the option.

use serde_json::json;

use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Options, start_daemon};

const APP: &str = "http://app.example:3000";
const OTHER: &str = "https://other.example";
const CORS_HEADERS: [&str; 6] = [
    "Access-Control-Allow-Origin",
    "Access-Control-Allow-Methods",
    "Access-Control-Allow-Headers",
    "Access-Control-Expose-Headers",
    "Access-Control-Max-Age",
    "Vary",
];

fn start_with_origins() -> Daemon {
    Options::default().args(&["--cors-origin", APP, "--cors-origin", OTHER]).start()
}

/// Sends a request as a browser does for a page of `origin`: a preflight has no token. `headers` are lines that end in
/// CRLF.
fn send(daemon: &Daemon, method: &str, path: &str, origin: &str, headers: &str) -> ResponseStream {
    let head = format!("{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n{headers}\r\n");
    ResponseStream::send(daemon.connect(), head.as_bytes())
}

fn preflight(daemon: &Daemon, origin: &str, path: &str, method: &str, headers: &str) -> ResponseStream {
    let asked = format!("Access-Control-Request-Method: {method}\r\nAccess-Control-Request-Headers: {headers}\r\n");
    send(daemon, "OPTIONS", path, origin, &asked)
}

/// The elements of a list in a header, in lower case.
fn list(response: &ResponseStream, name: &str) -> Vec<String> {
    let value = response.header(name).unwrap_or_else(|| panic!("no {name}"));
    value.split(',').map(|element| element.trim().to_ascii_lowercase()).collect()
}

#[test]
fn a_preflight_of_a_listed_origin_is_answered_without_a_token() {
    let daemon = start_with_origins();
    for origin in [APP, OTHER] {
        for (path, method, headers) in [
            ("/processes", "POST", "authorization,content-type"),
            ("/processes/run", "POST", "authorization,content-type,x-tensorlake-sandbox-id,traceparent"),
            ("/processes/1/output/follow", "GET", "authorization,last-event-id"),
            ("/processes/1", "DELETE", "authorization"),
            ("/files?path=x", "PUT", "authorization,if-none-match"),
            ("/files?path=x", "GET", "authorization,range"),
            ("/pty/x/ws", "GET", "x-pty-token"),
            ("/no/such/path", "GET", "authorization"),
        ] {
            let response = preflight(&daemon, origin, path, method, headers).expect_status(204);
            assert_eq!(response.header("Access-Control-Allow-Origin"), Some(origin));
            assert!(list(&response, "Access-Control-Allow-Methods").contains(&method.to_ascii_lowercase()), "{method}");
            let allowed = list(&response, "Access-Control-Allow-Headers");
            for header in headers.split(',') {
                // `*` allows every header but Authorization.
                let is_allowed =
                    allowed.iter().any(|name| name == header || (name == "*" && header != "authorization"));
                assert!(is_allowed, "{header} is not in {allowed:?}");
            }
            assert_eq!(list(&response, "Vary")[0], "origin");
            let age: u32 = response.header("Access-Control-Max-Age").expect("an age").parse().expect("a number");
            assert!(age > 0);
            assert_eq!(response.header("Access-Control-Allow-Credentials"), None);
        }
    }
    // Old browsers do not know `*`.
    let allowed = list(&preflight(&daemon, APP, "/info", "GET", ""), "Access-Control-Allow-Headers");
    for header in ["authorization", "content-type", "idempotency-key", "last-event-id", "x-pty-token", "range"] {
        assert!(allowed.iter().any(|name| name == header), "{header} is not in {allowed:?}");
    }
}

#[test]
fn a_preflight_is_counted_among_the_requests_without_an_endpoint() {
    let daemon = start_with_origins();
    preflight(&daemon, APP, "/info", "GET", "authorization").expect_status(204);
    let metrics = String::from_utf8(daemon.get("/metrics").body).expect("UTF-8");
    let sample = "tl_supervisor_http_requests_total{route=\"other\",method=\"other\",code=\"2xx\"} 1";
    assert!(metrics.lines().any(|line| line == sample), "{metrics}");
}

#[test]
fn another_origin_gets_no_permission() {
    let daemon = start_with_origins();
    for origin in [
        "http://app.example",
        "http://app.example:3001",
        "https://app.example:3000",
        "HTTP://APP.EXAMPLE:3000",
        "http://app.example:3000.evil.example",
        "http://evil.example",
        "null",
        "*",
        "",
    ] {
        let refused = preflight(&daemon, origin, "/processes", "POST", "authorization").expect_status(401);
        assert_eq!(refused.header("Access-Control-Allow-Origin"), None, "{origin:?}");
        assert_eq!(refused.header("Access-Control-Allow-Headers"), None, "{origin:?}");
        assert_eq!(refused.header("Vary"), Some("Origin"), "{origin:?}");
        let answered = daemon.open("GET", "/info", &format!("Origin: {origin}\r\n"), b"").expect_status(200);
        assert_eq!(answered.header("Access-Control-Allow-Origin"), None, "{origin:?}");
        assert_eq!(answered.header("Vary"), Some("Origin"), "{origin:?}");
    }
    let same_origin = daemon.get("/info");
    assert_eq!((same_origin.header("Access-Control-Allow-Origin"), same_origin.header("Vary")), (None, Some("Origin")));
}

#[test]
fn an_options_request_that_is_no_preflight_needs_the_token_and_is_not_allowed() {
    let daemon = start_with_origins();
    let refused = send(&daemon, "OPTIONS", "/info", APP, "").expect_status(401);
    assert_eq!(refused.header("Access-Control-Allow-Origin"), Some(APP));
    let without_origin = daemon.open("OPTIONS", "/info", "Access-Control-Request-Method: GET\r\n", b"");
    assert_eq!(without_origin.expect_status(405).header("Allow"), Some("GET, HEAD"));
}

#[test]
fn a_page_of_a_listed_origin_can_read_every_kind_of_response() {
    let daemon = start_with_origins();
    let pid = daemon.sh("echo line");
    daemon.wait_for_end(pid);
    let file = format!("/files?path={}/file", daemon.scratch().display());
    daemon.request("PUT", &file, Some(b"content")).expect(204);
    let run = json!({"command": "echo", "args": ["hello"]}).to_string();
    let bad = json!({"command": "no-such-program"}).to_string();
    let origin = format!("Origin: {APP}\r\n");
    let range = format!("{origin}Range: bytes=0-2\r\n");
    let raw = format!("{origin}Accept: application/octet-stream\r\n");
    for (method, path, headers, body, status) in [
        ("GET", "/info", &origin, "", 200),
        ("HEAD", "/info", &origin, "", 200),
        ("GET", "/health", &origin, "", 200),
        ("POST", "/processes/run", &origin, &run, 200),
        ("POST", "/processes", &origin, &run, 201),
        ("GET", &format!("/processes/{pid}/output/follow"), &origin, "", 200),
        ("GET", &format!("/processes/{pid}/output"), &origin, "", 200),
        ("GET", &format!("/processes/{pid}/output"), &raw, "", 200),
        ("GET", &file, &origin, "", 200),
        ("GET", &file, &range, "", 206),
        ("DELETE", &file, &origin, "", 204),
        ("POST", "/processes", &origin, &bad, 400),
        ("POST", "/processes", &origin, "{", 400),
        ("GET", "/processes/999999", &origin, "", 404),
        ("GET", "/nowhere", &origin, "", 404),
        ("POST", "/info", &origin, "", 405),
        ("POST", "/processes", &origin, &"x".repeat(2 << 20), 413),
        ("GET", "/tunnels/tcp?port=1", &origin, "", 426),
    ] {
        let response = daemon.open(method, path, headers, body.as_bytes()).expect_status(status);
        assert_eq!(response.header("Access-Control-Allow-Origin"), Some(APP), "{method} {path}");
        assert_eq!(response.header("Vary"), Some("Origin"), "{method} {path}");
        let exposed = list(&response, "Access-Control-Expose-Headers");
        for name in ["accept-ranges", "content-range", "allow", "retry-after", "idempotent-replayed"] {
            assert!(exposed.iter().any(|exposed| exposed == name), "{name} is not in {exposed:?}");
        }
        assert_eq!(response.header("Access-Control-Allow-Credentials"), None, "{method} {path}");
    }
    let unauthorized = send(&daemon, "GET", "/info", OTHER, "").expect_status(401);
    assert_eq!(unauthorized.header("Access-Control-Allow-Origin"), Some(OTHER));
}

#[test]
fn without_the_option_no_response_has_a_header_for_other_origins() {
    let daemon = start_daemon();
    let refused = preflight(&daemon, APP, "/info", "GET", "authorization").expect_status(401);
    let asked = format!("Origin: {APP}\r\nAccess-Control-Request-Method: GET\r\n");
    let not_allowed = daemon.open("OPTIONS", "/info", &asked, b"").expect_status(405);
    let answered = daemon.open("GET", "/info", &format!("Origin: {APP}\r\n"), b"").expect_status(200);
    for response in [refused, not_allowed, answered] {
        for name in CORS_HEADERS {
            assert_eq!(response.header(name), None, "{name}");
        }
    }
}

#[test]
fn origins_are_taken_from_all_lines_of_init_conf_or_from_a_list() {
    let dir = tempfile::tempdir().expect("create a directory");
    let conf = format!("TL_INIT_CORS_ORIGIN={APP}\nTL_INIT_KEEP_ENDED=7\nTL_INIT_CORS_ORIGIN={OTHER}\n");
    std::fs::write(dir.path().join("init.conf"), conf).expect("write the file");
    let options = Options::default().args(&["--config-dir", dir.path().to_str().expect("a path")]);
    let from_conf = options.clone().start();
    let from_list = Options::default().env("TL_INIT_CORS_ORIGIN", &format!("{APP}, {OTHER}")).start();
    for daemon in [&from_conf, &from_list] {
        for origin in [APP, OTHER] {
            preflight(daemon, origin, "/info", "GET", "").expect_status(204);
        }
    }
    let overridden = options.args(&["--cors-origin", "http://localhost:5173"]).start();
    preflight(&overridden, "http://localhost:5173", "/info", "GET", "").expect_status(204);
    preflight(&overridden, APP, "/info", "GET", "").expect_status(401);
}
