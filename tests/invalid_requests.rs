//! Errors that a client can cause: status, code, and a sentence that names what is wrong.

use serde_json::{Value, json};

use crate::harness::{Daemon, Options, TOKEN, pid_of, start_daemon, start_daemon_with};

#[test]
fn an_invalid_start_or_run_is_refused_with_a_sentence_that_names_the_field() {
    let daemon = start_daemon();
    let bad = |code: &'static str, needle: &'static str, body: Value| (code, needle, body);
    let with = |field: &str, value: Value| {
        let mut body = json!({"command": "true"});
        body[field] = value;
        body
    };
    const INVALID: &str = "INVALID_REQUEST";
    let cases = [
        bad(INVALID, "command", json!({})),
        bad(INVALID, "command", json!({"command": ""})),
        bad(INVALID, "command", json!({"command": null})),
        bad(INVALID, "command", json!({"command": 5})),
        bad(INVALID, "command", json!({"command": ["true"]})),
        bad(INVALID, "command", json!({"command": "tr\u{0}ue"})),
        bad(INVALID, "args", with("args", json!("x"))),
        bad(INVALID, "args", with("args", json!([1]))),
        bad(INVALID, "args", with("args", json!(["a\u{0}b"]))),
        bad(INVALID, "args", with("args", json!(["x".repeat(200_000)]))),
        bad(INVALID, "env", with("env", json!([]))),
        bad(INVALID, "env", with("env", json!({"A": 1}))),
        bad(INVALID, "env", with("env", json!({"": "x"}))),
        bad(INVALID, "env", with("env", json!({"A=B": "x"}))),
        bad(INVALID, "env", with("env", json!({"A\u{0}": "x"}))),
        bad(INVALID, "env", with("env", json!({"A": "x\u{0}"}))),
        bad(INVALID, "working_dir", with("working_dir", json!(1))),
        bad(INVALID, "working_dir", with("working_dir", json!("/tmp\u{0}"))),
        bad(INVALID, "stdin_mode", with("stdin_mode", json!("open"))),
        bad(INVALID, "stdin_mode", with("stdin_mode", json!(true))),
        bad(INVALID, "stdout_mode", with("stdout_mode", json!("pipe"))),
        bad(INVALID, "stderr_mode", with("stderr_mode", json!("Capture"))),
        bad("COMMAND_NOT_FOUND", "no-such-command", json!({"command": "no-such-command"})),
        bad("COMMAND_NOT_FOUND", "/no/such/command", json!({"command": "/no/such/command"})),
        bad("COMMAND_NOT_FOUND", "command", json!({"command": "true", "env": {"PATH": "/nowhere"}})),
        bad("NOT_EXECUTABLE", "/etc/passwd", json!({"command": "/etc/passwd"})),
        bad("NOT_EXECUTABLE", "/usr", json!({"command": "/usr"})),
        bad("COMMAND_NOT_FOUND", "command", json!({"command": "/etc/passwd/x"})),
        bad("WORKING_DIR_NOT_FOUND", "/no/such", with("working_dir", json!("/no/such"))),
        bad("WORKING_DIR_NOT_FOUND", "/etc/passwd", with("working_dir", json!("/etc/passwd"))),
        bad("USER_NOT_FOUND", "nobody-here", with("user", json!("nobody-here"))),
        bad(INVALID, "name", with("name", json!(""))),
        bad(INVALID, "name", with("name", json!("a/b"))),
        bad(INVALID, "name", with("name", json!("123"))),
        bad(INVALID, "name", with("name", json!("."))),
        bad(INVALID, "name", with("name", json!(".."))),
        bad(INVALID, "export C", with("env", json!({"export C": "3"}))),
        bad(INVALID, "restart", with("restart", json!("always"))),
        bad(INVALID, "restart.policy", with("restart", json!({"policy": "sometimes"}))),
        bad(INVALID, "restart.max_restarts", with("restart", json!({"max_restarts": -1}))),
        bad(INVALID, "health_check", with("health_check", json!({"type": "http"}))),
        bad(INVALID, "health_check.port", with("health_check", json!({"type": "tcp", "port": 0}))),
        bad(INVALID, "health_check.port", with("health_check", json!({"type": "tcp", "port": 70_000}))),
        bad(INVALID, "health_check.type", with("health_check", json!({"type": "udp", "port": 1}))),
        bad(INVALID, "health_check.path", with("health_check", json!({"type": "http", "port": 1, "path": "x"}))),
    ];
    for (code, needle, body) in &cases {
        daemon.post("/processes", body).expect_error(400, code, needle);
    }
    for (code, needle, body) in cases.iter().filter(|(_, _, body)| body.get("stdin_mode").is_none()) {
        let ignored = ["stdout_mode", "stderr_mode"].iter().any(|field| body.get(*field).is_some());
        let reply = daemon.post("/processes/run", body);
        if ignored {
            continue;
        }
        // A run refuses the fields of managed processes altogether.
        let managed = ["name", "restart", "health_check"].iter().find(|field| body.get(**field).is_some());
        reply.expect_error(400, code, managed.copied().unwrap_or(needle));
    }
    for body in [json!({"name": "x"}), json!({"restart": {}}), json!({"health_check": {"type": "tcp", "port": 1}})] {
        let field = body.as_object().and_then(|body| body.keys().next().cloned()).expect("a field");
        let mut body = body;
        body["command"] = json!("true");
        daemon.post("/processes/run", &body).expect_error(400, INVALID, &field);
    }
    for timeout in [json!(0), json!(-1), json!("1"), json!([])] {
        daemon.post("/processes/run", &with("timeout", timeout)).expect_error(400, INVALID, "timeout");
    }
    nothing_started(&daemon);
}

fn nothing_started(daemon: &Daemon) {
    let running: Vec<Value> = daemon.list().into_iter().filter(|info| info["status"] == "running").collect();
    assert_eq!(running, [Value::Null; 0]);
    assert_eq!(daemon.run_sh("echo x").stdout(), "x", "it still works");
}

/// A copy of `body` with `value` at a path like `health_check.port`.
fn put(body: &Value, path: &str, value: &Value) -> Value {
    let mut body = body.clone();
    let pointer = format!("/{}", path.replace('.', "/"));
    let (parent, field) = pointer.rsplit_once('/').expect("a field");
    body.pointer_mut(parent).expect("its parent")[field] = value.clone();
    body
}

/// For each field and each wrong value, the sentence names the field and says what it must be.
#[test]
fn a_wrong_type_is_refused_with_the_field_and_what_it_must_be() {
    let daemon = start_daemon();
    const STRING: &str = "must be a string";
    const STRINGS: &str = "must be a list of strings";
    const PAIRS: &str = "must be an object whose values are strings";
    const OBJECT: &str = "must be an object";
    const USER: &str = "must be a name, a UID or `uid:gid` as a string";
    const TIME: &str = "must be a whole number from 0 to 86400000";
    const SOME_TIME: &str = "must be a whole number from 1 to 86400000";
    const COUNT: &str = "must be a whole number from 0 to 4294967295";
    const ID: &str = "must be a whole number from 0 to 4294967294";
    let common =
        [("command", STRING), ("args", STRINGS), ("env", PAIRS), ("working_dir", STRING), ("user", USER)].to_vec();
    let users = [("user.uid", ID), ("user.gid", ID), ("user.name", STRING)];
    let start = [
        ("stdin_mode", "must be one of `closed`, `pipe`"),
        ("stdout_mode", "must be one of `capture`, `discard`"),
        ("stderr_mode", "must be one of `capture`, `discard`"),
        ("name", STRING),
        ("stop_grace_ms", TIME),
        ("restart", OBJECT),
        ("restart.policy", "must be one of `never`, `on_failure`, `always`"),
        ("restart.max_restarts", COUNT),
        ("restart.initial_backoff_ms", TIME),
        ("restart.max_backoff_ms", TIME),
        ("health_check", OBJECT),
        ("health_check.type", "must be one of `http`, `tcp`"),
        ("health_check.port", "must be a whole number from 1 to 65535"),
        ("health_check.path", STRING),
        ("health_check.initial_delay_ms", TIME),
        ("health_check.interval_ms", SOME_TIME),
        ("health_check.timeout_ms", SOME_TIME),
        ("health_check.failure_threshold", "must be a whole number from 1 to 4294967295"),
    ];
    let pid = daemon.sh("sleep 4902");
    let pty = daemon.post("/pty", &json!({"command": "sleep", "args": ["4902"]})).expect(201);
    let resize = format!("/pty/{}/resize", pty["session_id"].as_str().expect("an id"));
    let managed =
        json!({"command": "true", "user": {"uid": 0}, "restart": {}, "health_check": {"type": "http", "port": 1}});
    let plain = json!({"command": "true", "user": {"uid": 0}});
    let signal = format!("/processes/{pid}/signal");
    let grow = |more: &[(&'static str, &'static str)]| [&common[..], &users[..], more].concat();
    for (path, body, fields) in [
        ("/processes", &managed, grow(&start)),
        ("/processes/run", &plain, grow(&[("timeout", "must be a number of seconds above 0")])),
        ("/pty", &plain, grow(&[("rows", COUNT), ("cols", COUNT)])),
        (&resize, &json!({"rows": 1, "cols": 1}), vec![("rows", COUNT), ("cols", COUNT)]),
        (&signal, &json!({}), vec![("signal", "must be a whole number from 1 to 64")]),
        (
            "/shutdown",
            &json!({"action": "exit"}),
            vec![("action", "must be one of `poweroff`, `reboot`, `halt`, `exit`"), ("grace_ms", TIME)],
        ),
    ] {
        for (field, right) in fields {
            // Each of these is wrong except for fields of that very type.
            let wrong =
                [json!(true), json!(-1), json!(-0.5), json!("\n"), json!([]), json!([1]), json!({}), json!(1e300)];
            let is_right = |value: &Value| match right {
                STRING => value.is_string(),
                STRINGS => *value == json!([]) || *value == json!([1]),
                PAIRS | OBJECT | USER => value.is_object(),
                _ => right.contains("seconds above") && *value == json!(1e300),
            };
            // -1 has the right type but is not a signal, which has a code of its own.
            let code = |value: &Value| {
                if field == "signal" && *value == json!(-1) { "INVALID_SIGNAL" } else { "INVALID_REQUEST" }
            };
            for value in wrong.iter().filter(|value| !is_right(value)) {
                let reply = daemon.post(path, &put(body, field, value));
                reply.expect_error(400, code(value), right);
                let sentence = reply.json()["error"].as_str().expect("a sentence").to_owned();
                assert!(sentence.contains(&format!("`{field}`")), "{path} {field} {value}: {sentence}");
                for jargon in ["expected", "invalid type", "i64", "u64", "f64", "..=", "sequence", "map", " line "] {
                    assert!(!sentence.contains(jargon), "{path} {field} {value}: {sentence}");
                }
            }
        }
    }
    // The sentence names elements of lists and members of objects.
    for (field, value) in [("args[1]", json!({"args": ["", 1]})), ("env.A", json!({"env": {"A": null}}))] {
        let mut body = value;
        body["command"] = json!("true");
        for path in ["/processes", "/processes/run", "/pty"] {
            daemon.post(path, &body).expect_error(400, "INVALID_REQUEST", &format!("`{field}`: must be a string"));
        }
    }
    // JSON allows these literals, but they denote no Unicode string and no finite double.
    for (field, body) in [
        ("command", r#"{"command": "\ud800"}"#),
        ("args[0]", r#"{"command": "true", "args": ["\udc00x"]}"#),
        ("timeout", r#"{"command": "true", "timeout": 1e999}"#),
    ] {
        let reply = daemon.request("POST", "/processes/run", Some(body.as_bytes()));
        reply.expect_error(400, "INVALID_REQUEST", "a string must be Unicode, a number within the range of a double");
        assert!(reply.json()["error"].as_str().expect("a sentence").starts_with(&format!("`{field}`: ")), "{body}");
    }
    assert_eq!(daemon.list().len(), 1, "nothing was started, or signalled");
    assert_eq!(daemon.info(pid)["status"], "running");
}

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
    nothing_started(&daemon);
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
            let reply = daemon.request("POST", path, Some(body));
            let code = reply.json()["code"].clone();
            assert!(
                reply.status == 400 && code == "INVALID_REQUEST" || path.ends_with("signal") && reply.status == 404,
                "{} {code} for {}",
                reply.status,
                String::from_utf8_lossy(body)
            );
        }
    }
    let deep = "[".repeat(100_000);
    daemon.request("POST", "/processes", Some(deep.as_bytes())).expect_error(400, "INVALID_REQUEST", "");
    // A POST without a body and without Content-Length.
    daemon.open("POST", "/processes", "", b"").into_response("no body").expect_error(400, "INVALID_REQUEST", "");
    nothing_started(&daemon);
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
    let reply =
        crate::harness::response::ResponseStream::send(daemon.connect(), head.as_bytes()).into_response("chunks");
    reply.expect_error(413, "BODY_TOO_LARGE", "");
    let long = format!("X-Long: {}\r\n", "x".repeat(70_000));
    daemon.open("GET", "/info", &long, b"").into_response("a long head").expect_error(431, "HEAD_TOO_LARGE", "");
    let small = start_daemon_with(&["--max-body", "1000", "--max-head", "2000"]);
    let body = json!({"command": "true", "args": ["x".repeat(1000)]});
    small.post("/processes", &body).expect_error(413, "BODY_TOO_LARGE", "1000");
    let long = format!("X-Long: {}\r\n", "x".repeat(3_000));
    small.open("GET", "/info", &long, b"").into_response("a long head").expect_error(431, "HEAD_TOO_LARGE", "2000");
    nothing_started(&daemon);
    nothing_started(&small);
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
            ("DELETE", ""),
            ("POST", "/restart"),
            ("POST", "/stdin"),
            ("POST", "/stdin/close"),
        ] {
            let body = (method == "POST").then_some(b"".as_slice());
            let reply = daemon.request(method, &format!("/processes/{process}{rest}"), body);
            // A segment that is not UTF-8 cannot be a name; the sentence differs.
            reply.expect_error(404, "NOT_FOUND", if process == "%ff" { "" } else { "no process" });
        }
        let reply = daemon.post(&format!("/processes/{process}/signal"), &json!({"signal": 15}));
        assert!([404, 400].contains(&reply.status), "{process}");
    }
    nothing_started(&daemon);
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
        let reply = daemon.open(method, path, "Content-Length: 0\r\n", b"").into_response(&format!("{method} {path}"));
        if allow.is_empty() {
            reply.expect_error(404, "NOT_FOUND", "");
            continue;
        }
        reply.expect_error(405, "METHOD_NOT_ALLOWED", "");
        let allowed = reply.header("allow").expect("it says what is allowed").to_owned();
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
        let reply = daemon.post(&path, &json!({"signal": signal}));
        reply.expect_error(400, "INVALID_SIGNAL", "signal");
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
            let reply = ask(head, path);
            reply.expect_error(401, "UNAUTHORIZED", "");
            assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")), "{head}");
        }
        assert_eq!(ask(head, "/health").status, 200);
    }
    assert_eq!(ask(&format!("Authorization: Bearer {token}\r\n"), "/info").status, 200);
    assert_eq!(ask(&format!("authorization: bearer {token}\r\n"), "/info").status, 200, "the scheme has no case");
    // Other headers that clients send are ignored.
    let head = format!(
        "Authorization: Bearer {token}\r\nOrigin: https://x.example\r\nX-Tensorlake-Sandbox-Id: sbx-1\r\n\
         X-Forwarded-For: 1.2.3.4\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    );
    assert_eq!(ask(&head, "/info").status, 200);
    // A start without the token starts nothing.
    let text = "POST /api/v1/processes HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{\"command\":\"true\"}";
    let reply = crate::harness::response::ResponseStream::send(daemon.connect(), text.as_bytes())
        .into_response("without a token");
    reply.expect_error(401, "UNAUTHORIZED", "");
    nothing_started(&daemon);
}

#[test]
fn no_auth_accepts_requests_without_a_token_and_logs_a_warning() {
    let daemon = start_daemon_with(&["--no-auth"]);
    let text = "GET /api/v1/processes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(crate::harness::response::ResponseStream::send(daemon.connect(), text.as_bytes()).status, 200);
    assert_eq!(daemon.run_sh("echo x").stdout(), "x", "a token that is sent all the same does no harm");
    assert!(daemon.log().to_lowercase().contains("warn"), "it is logged as a warning: {}", daemon.log());
    assert!(!daemon.state_dir().join("run/token").exists());
    assert_eq!(daemon.token, TOKEN);
}
