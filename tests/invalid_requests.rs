//! Errors that a client can cause: status, code, and a sentence that names what is wrong.

use serde_json::json;

use crate::harness::{Options, TOKEN, pid_of, start_daemon, start_daemon_with};

#[test]
fn a_file_that_cannot_be_executed_is_refused_as_not_executable() {
    let daemon = start_daemon();
    for (name, text) in [("no-interpreter", "#!/no/such/interpreter\n"), ("no-format", "just text\n"), ("empty", "")] {
        let path = daemon.script(name, text);
        daemon.post("/processes", &json!({"command": path})).expect_error(400, "NOT_EXECUTABLE", name);
    }
    let plain = daemon.script("plain", "#!/bin/sh\n");
    std::fs::set_permissions(&plain, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("not executable");
    daemon.post("/processes", &json!({"command": plain})).expect_error(400, "NOT_EXECUTABLE", "plain");
    daemon.check_nothing_started();
}

#[test]
fn a_body_that_is_not_a_json_object_is_refused() {
    let daemon = start_daemon();
    let bodies: &[&[u8]] = &[
        b"",
        b"{",
        b"{\"command\": \"true\"",
        b"{\"command\": \"true\"} x",
        b"[]",
        b"null",
        b"\"true\"",
        b"5",
        b"nonsense",
        b"{\"command\": \"\xff\"}",
        b"{\"command\": \"\\ud800\"}",
        b"command=true",
        b"\0",
        b"{'command': 'true'}",
        b"{\"command\": \"true\", \"command\": \"true\"}",
    ];
    for path in ["/processes", "/processes/run", "/processes/1/signal"] {
        for body in bodies {
            let response = daemon.request("POST", path, Some(body));
            let code = response.json()["code"].clone();
            assert!(
                response.status == 400 && code == "INVALID_REQUEST"
                    || path.ends_with("signal") && response.status == 404,
                "{} {code} for {}",
                response.status,
                String::from_utf8_lossy(body)
            );
        }
    }
    let deep = "[".repeat(100_000);
    daemon.request("POST", "/processes", Some(deep.as_bytes())).expect_error(400, "INVALID_REQUEST", "");
    // A POST without a body and without Content-Length.
    daemon.open("POST", "/processes", "", b"").into_response("no body").expect_error(400, "INVALID_REQUEST", "");
    daemon.check_nothing_started();
}

#[test]
fn a_body_or_head_above_its_limit_is_refused_with_413_or_431() {
    let daemon = start_daemon();
    let huge = json!({"command": "true", "args": ["x".repeat(1 << 20)]});
    for path in ["/processes", "/processes/run"] {
        daemon.post_refused(path, huge.to_string().as_bytes()).expect_error(413, "BODY_TOO_LARGE", "");
    }
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(17);
    let head = format!(
        "POST /api/v1/processes HTTP/1.1\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n",
        daemon.token
    );
    let response =
        crate::harness::response::ResponseStream::send(daemon.connect(), head.as_bytes()).into_response("chunks");
    response.expect_error(413, "BODY_TOO_LARGE", "");
    let long = format!("X-Long: {}\r\n", "x".repeat(70_000));
    daemon.open("GET", "/info", &long, b"").into_response("a long head").expect_error(431, "HEAD_TOO_LARGE", "");
    let small = start_daemon_with(&["--max-body", "1000", "--max-head", "2000"]);
    let body = json!({"command": "true", "args": ["x".repeat(1000)]});
    small.post("/processes", &body).expect_error(413, "BODY_TOO_LARGE", "1000");
    let long = format!("X-Long: {}\r\n", "x".repeat(3_000));
    small.open("GET", "/info", &long, b"").into_response("a long head").expect_error(431, "HEAD_TOO_LARGE", "2000");
    daemon.check_nothing_started();
    small.check_nothing_started();
}

#[test]
fn requests_to_unknown_processes_are_404() {
    let daemon = start_daemon();
    let gone = [
        "0",
        "-1",
        "99999999999999",
        "99999999999999999999999999",
        "1",
        "no-such-name",
        "%20",
        "%2F",
        "%ff",
        "1.5",
        "0x1",
    ];
    for process in gone {
        for (method, rest) in [
            ("GET", ""),
            ("GET", "/stdout"),
            ("GET", "/stderr"),
            ("GET", "/output"),
            ("GET", "/stdout/follow"),
            ("GET", "/stderr/follow"),
            ("GET", "/output/follow"),
            ("GET", "/wait?timeout=1"),
            ("GET", "/usage"),
            ("DELETE", ""),
            ("POST", "/restart"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/stdin"),
            ("POST", "/stdin/close"),
        ] {
            let body = (method == "POST").then_some(b"".as_slice());
            let response = daemon.request(method, &format!("/processes/{process}{rest}"), body);
            // A segment that is not UTF-8 cannot be a name; the sentence differs.
            response.expect_error(404, "NOT_FOUND", if process == "%ff" { "" } else { "no process" });
        }
        let response = daemon.post(&format!("/processes/{process}/signal"), &json!({"signal": 15}));
        assert!([404, 400].contains(&response.status), "{process}");
    }
    daemon.check_nothing_started();
}

#[test]
fn unknown_paths_are_404_and_unknown_methods_405_with_allow() {
    let daemon = start_daemon();
    for path in [
        "/nothing",
        "/",
        "",
        "/processes/1/nothing",
        "/processes/1/stdout/nothing",
        "/processes/",
        "/../v1/health",
        "/processes//stdout",
    ] {
        daemon.get(path).expect_error(404, "NOT_FOUND", "");
    }
    let outside = crate::harness::response::ResponseStream::send(
        daemon.connect(),
        format!("GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", daemon.token).as_bytes(),
    );
    outside.into_response("GET / outside the API").expect_error(404, "NOT_FOUND", "");
    for (method, path, allow) in [
        ("PUT", "/processes", vec!["GET", "POST"]),
        ("DELETE", "/processes", vec!["GET", "POST"]),
        ("GET", "/processes/run/follow", vec![]),
        ("POST", "/processes/1", vec!["GET", "DELETE"]),
        ("POST", "/processes/1/stdout", vec!["GET"]),
        ("GET", "/processes/1/signal", vec!["POST"]),
        ("GET", "/processes/1/stdin", vec!["POST"]),
        ("PUT", "/processes/1/stdin/close", vec!["POST"]),
        ("POST", "/health", vec!["GET"]),
        ("DELETE", "/info", vec!["GET"]),
        ("BREW", "/processes", vec!["GET", "POST"]),
    ] {
        let response =
            daemon.open(method, path, "Content-Length: 0\r\n", b"").into_response(&format!("{method} {path}"));
        if allow.is_empty() {
            response.expect_error(404, "NOT_FOUND", "");
            continue;
        }
        response.expect_error(405, "METHOD_NOT_ALLOWED", "");
        let allowed = response.header("allow").expect("an Allow header").to_owned();
        for method in allow {
            assert!(allowed.split(", ").any(|word| word == method), "{allowed} for {path}");
        }
    }
}

#[test]
fn invalid_signals_are_refused_and_not_sent() {
    let daemon = start_daemon();
    let pid = daemon.sh("sleep 4900");
    let path = format!("/processes/{pid}/signal");
    for signal in [json!(0), json!(65), json!(-1), json!(1_000_000_000_000_u64)] {
        let response = daemon.post(&path, &json!({"signal": signal}));
        response.expect_error(400, "INVALID_SIGNAL", "signal");
    }
    for body in [json!({}), json!({"signal": "15"}), json!({"signal": 1.5}), json!({"signal": null}), json!([15])] {
        daemon.post(&path, &body).expect_error(400, "INVALID_REQUEST", if body.is_object() { "signal" } else { "" });
    }
    assert_eq!(daemon.info(pid)["status"], "running");
}

#[test]
fn restart_of_plain_signal_of_ended_and_a_name_in_use_are_409() {
    let daemon = start_daemon();
    let running = daemon.sh("sleep 4901");
    let ended = daemon.run_sh("exit 0").pid();
    let restart = |pid: u64| daemon.request("POST", &format!("/processes/{pid}/restart"), Some(b""));
    restart(running).expect_error(409, "NOT_MANAGED", "managed");
    restart(ended).expect_error(409, "NOT_MANAGED", "managed");
    daemon.post(&format!("/processes/{ended}/signal"), &json!({"signal": 9})).expect_error(409, "NOT_RUNNING", "ended");
    let named = json!({"command": "sleep", "args": ["4901"], "name": "taken"});
    let first = pid_of(&daemon.start_process(&named));
    daemon.post("/processes", &named).expect_error(409, "NAME_IN_USE", "taken");
    assert_eq!(daemon.get("/processes/taken").expect(200)["pid"], first);
    daemon.delete("/processes/taken").expect(204);
}

#[test]
fn every_endpoint_but_health_requires_the_bearer_token() {
    let daemon = Options::default().start();
    let ask = |head: &str, path: &str| {
        let text = format!("GET /api/v1{path} HTTP/1.1\r\nHost: x\r\n{head}\r\n");
        crate::harness::response::ResponseStream::send(daemon.connect(), text.as_bytes()).into_response(head)
    };
    let token = &daemon.token;
    assert!(token.len() >= 32, "{token}");
    let wrong = [
        String::new(),
        "Authorization: Bearer\r\n".into(),
        "Authorization: Bearer \r\n".into(),
        "Authorization: Bearer wrong\r\n".into(),
        format!("Authorization: Bearer {token}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &token[1..]),
        format!("Authorization: Basic {token}\r\n"),
        format!("Authorization: {token}\r\n"),
        format!("X-Token: {token}\r\n"),
        format!("Authorization: Bearer {}\r\n", token.chars().rev().collect::<String>()),
    ];
    for head in &wrong {
        for path in ["/info", "/processes", "/processes/1", "/nothing"] {
            let response = ask(head, path);
            response.expect_error(401, "UNAUTHORIZED", "");
            assert!(response.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")), "{head}");
        }
        assert_eq!(ask(head, "/health").status, 200);
    }
    assert_eq!(ask(&format!("Authorization: Bearer {token}\r\n"), "/info").status, 200);
    assert_eq!(
        ask(&format!("authorization: bearer {token}\r\n"), "/info").status,
        200,
        "the scheme is case-insensitive"
    );
    // Other headers that clients send are ignored.
    let head = format!(
        "Authorization: Bearer {token}\r\nOrigin: https://x.example\r\nX-Tensorlake-Sandbox-Id: sbx-1\r\n\
         X-Forwarded-For: 1.2.3.4\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    );
    assert_eq!(ask(&head, "/info").status, 200);
    // A start without the token starts nothing.
    let text = "POST /api/v1/processes HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{\"command\":\"true\"}";
    let response = crate::harness::response::ResponseStream::send(daemon.connect(), text.as_bytes())
        .into_response("without a token");
    response.expect_error(401, "UNAUTHORIZED", "");
    daemon.check_nothing_started();
}

#[test]
fn no_auth_accepts_requests_without_a_token_and_logs_a_warning() {
    let daemon = start_daemon_with(&["--no-auth"]);
    let text = "GET /api/v1/processes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(crate::harness::response::ResponseStream::send(daemon.connect(), text.as_bytes()).status, 200);
    assert_eq!(daemon.run_sh("echo x").stdout(), "x", "a token is accepted and ignored");
    assert!(daemon.log().to_lowercase().contains("warn"), "it is logged as a warning: {}", daemon.log());
    assert!(!daemon.state_dir().join("run/token").exists());
    assert_eq!(daemon.token, TOKEN);
}
