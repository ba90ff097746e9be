//! Request bodies with missing, wrong or invalid fields: the sentence of the error names the field.

use serde_json::{Value, json};

use crate::harness::{Daemon, start_daemon};

const INVALID: &str = "INVALID_REQUEST";

/// The body of a start of `true`, with one more field.
fn with(field: &str, value: Value) -> Value {
    let mut body = json!({"command": "true"});
    body[field] = value;
    body
}

/// Bodies that no start accepts: expected code, text in the sentence, body.
fn invalid_starts() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (INVALID, "command", json!({})),
        (INVALID, "command", json!({"command": ""})),
        (INVALID, "command", json!({"command": null})),
        (INVALID, "command", json!({"command": 5})),
        (INVALID, "command", json!({"command": ["true"]})),
        (INVALID, "command", json!({"command": "tr\u{0}ue"})),
        (INVALID, "args", with("args", json!("x"))),
        (INVALID, "args", with("args", json!([1]))),
        (INVALID, "args", with("args", json!(["a\u{0}b"]))),
        (INVALID, "args", with("args", json!(["x".repeat(200_000)]))),
        (INVALID, "env", with("env", json!([]))),
        (INVALID, "env", with("env", json!({"A": 1}))),
        (INVALID, "env", with("env", json!({"": "x"}))),
        (INVALID, "env", with("env", json!({"A=B": "x"}))),
        (INVALID, "env", with("env", json!({"A\u{0}": "x"}))),
        (INVALID, "env", with("env", json!({"A": "x\u{0}"}))),
        (INVALID, "working_dir", with("working_dir", json!(1))),
        (INVALID, "working_dir", with("working_dir", json!("/tmp\u{0}"))),
        (INVALID, "stdin_mode", with("stdin_mode", json!("open"))),
        (INVALID, "stdin_mode", with("stdin_mode", json!(true))),
        (INVALID, "stdout_mode", with("stdout_mode", json!("pipe"))),
        (INVALID, "stderr_mode", with("stderr_mode", json!("Capture"))),
        ("COMMAND_NOT_FOUND", "no-such-command", json!({"command": "no-such-command"})),
        ("COMMAND_NOT_FOUND", "/no/such/command", json!({"command": "/no/such/command"})),
        ("COMMAND_NOT_FOUND", "command", json!({"command": "true", "env": {"PATH": "/nowhere"}})),
        ("NOT_EXECUTABLE", "/etc/passwd", json!({"command": "/etc/passwd"})),
        ("NOT_EXECUTABLE", "/usr", json!({"command": "/usr"})),
        ("COMMAND_NOT_FOUND", "command", json!({"command": "/etc/passwd/x"})),
        ("WORKING_DIR_NOT_FOUND", "/no/such", with("working_dir", json!("/no/such"))),
        ("WORKING_DIR_NOT_FOUND", "/etc/passwd", with("working_dir", json!("/etc/passwd"))),
        ("USER_NOT_FOUND", "nobody-here", with("user", json!("nobody-here"))),
        (INVALID, "no_new_privs", with("no_new_privs", json!("true"))),
        (INVALID, "limits", with("limits", json!([]))),
        (INVALID, "limits.cpus", with("limits", json!({"cpus": "1"}))),
        (INVALID, "limits.processes", with("limits", json!({"processes": 0}))),
        (INVALID, "name", with("name", json!(""))),
        (INVALID, "name", with("name", json!("a/b"))),
        (INVALID, "name", with("name", json!("123"))),
        (INVALID, "name", with("name", json!("."))),
        (INVALID, "name", with("name", json!(".."))),
        (INVALID, "export C", with("env", json!({"export C": "3"}))),
        (INVALID, "restart", with("restart", json!("always"))),
        (INVALID, "restart.policy", with("restart", json!({"policy": "sometimes"}))),
        (INVALID, "restart.max_restarts", with("restart", json!({"max_restarts": -1}))),
        (INVALID, "health_check", with("health_check", json!({"type": "http"}))),
        (INVALID, "health_check.port", with("health_check", json!({"type": "tcp", "port": 0}))),
        (INVALID, "health_check.port", with("health_check", json!({"type": "tcp", "port": 70_000}))),
        (INVALID, "health_check.type", with("health_check", json!({"type": "udp", "port": 1}))),
        (INVALID, "health_check.path", with("health_check", json!({"type": "http", "port": 1, "path": "x"}))),
    ]
}

#[test]
fn an_invalid_start_or_run_is_refused_with_a_sentence_that_names_the_field() {
    let daemon = start_daemon();
    let cases = invalid_starts();
    for (code, needle, body) in &cases {
        daemon.post("/processes", body).expect_error(400, code, needle);
    }
    for (code, needle, body) in cases.iter().filter(|(_, _, body)| body.get("stdin_mode").is_none()) {
        let ignored = ["stdout_mode", "stderr_mode"].iter().any(|field| body.get(*field).is_some());
        let response = daemon.post("/processes/run", body);
        if ignored {
            continue;
        }
        // A run refuses the fields of managed processes altogether.
        let managed = ["name", "restart", "health_check"].iter().find(|field| body.get(**field).is_some());
        response.expect_error(400, code, managed.copied().unwrap_or(needle));
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
    daemon.check_nothing_started();
}

const STRING: &str = "must be a string";
const STRINGS: &str = "must be a list of strings";
const PAIRS: &str = "must be an object whose values are strings";
const OBJECT: &str = "must be an object";
const USER: &str = "must be a name, a UID or `uid:gid` as a string";
const TIME: &str = "must be a whole number from 0 to 86400000";
const SOME_TIME: &str = "must be a whole number from 1 to 86400000";
const COUNT: &str = "must be a whole number from 0 to 4294967295";
const ID: &str = "must be a whole number from 0 to 4294967294";

/// A field, and what its sentence says it must be.
type Field = (&'static str, &'static str);

/// Fields of every kind of start.
const COMMON: [Field; 8] = [
    ("command", STRING),
    ("args", STRINGS),
    ("env", PAIRS),
    ("working_dir", STRING),
    ("user", USER),
    ("user.uid", ID),
    ("user.gid", ID),
    ("user.name", STRING),
];

/// Further fields of `POST /processes`.
const START: [Field; 18] = [
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

/// A copy of `body` with `value` at a path like `health_check.port`.
fn with_field(body: &Value, path: &str, value: &Value) -> Value {
    let mut body = body.clone();
    let pointer = format!("/{}", path.replace('.', "/"));
    let (parent, field) = pointer.rsplit_once('/').expect("a field");
    body.pointer_mut(parent).expect("its parent")[field] = value.clone();
    body
}

/// Sends values of wrong types for one field of `body`; each sentence must name the field and say `right`.
fn check_wrong_types(daemon: &Daemon, path: &str, body: &Value, field: &str, right: &str) {
    // Each of these is wrong except for fields of that very type.
    let wrong = [json!(true), json!(-1), json!(-0.5), json!("\n"), json!([]), json!([1]), json!({}), json!(1e300)];
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
        let response = daemon.post(path, &with_field(body, field, value));
        response.expect_error(400, code(value), right);
        let sentence = response.json()["error"].as_str().expect("a sentence").to_owned();
        assert!(sentence.contains(&format!("`{field}`")), "{path} {field} {value}: {sentence}");
        for jargon in ["expected", "invalid type", "i64", "u64", "f64", "..=", "sequence", "map", " line "] {
            assert!(!sentence.contains(jargon), "{path} {field} {value}: {sentence}");
        }
    }
}

#[test]
fn a_wrong_type_is_refused_with_the_field_and_what_it_must_be() {
    let daemon = start_daemon();
    let pid = daemon.sh("sleep 4902");
    let pty = daemon.post("/pty", &json!({"command": "sleep", "args": ["4902"]})).expect(201);
    let resize = format!("/pty/{}/resize", pty["session_id"].as_str().expect("an id"));
    let managed =
        json!({"command": "true", "user": {"uid": 0}, "restart": {}, "health_check": {"type": "http", "port": 1}});
    let plain = json!({"command": "true", "user": {"uid": 0}});
    let signal = format!("/processes/{pid}/signal");
    let with_common = |more: &[Field]| [&COMMON[..], more].concat();
    for (path, body, fields) in [
        ("/processes", &managed, with_common(&START)),
        ("/processes/run", &plain, with_common(&[("timeout", "must be a number of seconds above 0")])),
        ("/pty", &plain, with_common(&[("rows", COUNT), ("cols", COUNT)])),
        (&resize, &json!({"rows": 1, "cols": 1}), vec![("rows", COUNT), ("cols", COUNT)]),
        (&signal, &json!({}), vec![("signal", "must be a whole number from 1 to 64")]),
        (
            "/shutdown",
            &json!({"action": "exit"}),
            vec![("action", "must be one of `poweroff`, `reboot`, `halt`, `exit`"), ("grace_ms", TIME)],
        ),
    ] {
        for (field, right) in fields {
            check_wrong_types(&daemon, path, body, field, right);
        }
    }
    assert_eq!(daemon.list().len(), 1, "nothing was started or signalled");
    assert_eq!(daemon.info(pid)["status"], "running");
}

#[test]
fn a_wrong_element_of_a_list_or_an_object_is_named() {
    let daemon = start_daemon();
    for (field, value) in [("args[1]", json!({"args": ["", 1]})), ("env.A", json!({"env": {"A": null}}))] {
        let mut body = value;
        body["command"] = json!("true");
        for path in ["/processes", "/processes/run", "/pty"] {
            daemon.post(path, &body).expect_error(400, "INVALID_REQUEST", &format!("`{field}`: must be a string"));
        }
    }
}

#[test]
fn json_literals_without_a_value_are_refused() {
    let daemon = start_daemon();
    // JSON allows these literals, but they denote no Unicode string and no finite double.
    for (field, body) in [
        ("command", r#"{"command": "\ud800"}"#),
        ("args[0]", r#"{"command": "true", "args": ["\udc00x"]}"#),
        ("timeout", r#"{"command": "true", "timeout": 1e999}"#),
    ] {
        let response = daemon.request("POST", "/processes/run", Some(body.as_bytes()));
        response.expect_error(
            400,
            "INVALID_REQUEST",
            "a string must be Unicode, a number within the range of a double",
        );
        assert!(response.json()["error"].as_str().expect("a sentence").starts_with(&format!("`{field}`: ")), "{body}");
    }
    assert_eq!(daemon.list(), [Value::Null; 0], "nothing was started");
}

#[test]
fn invalid_fields_of_a_managed_process_are_refused_by_name() {
    let daemon = start_daemon();
    let check = |field: &str, value: Value| {
        let mut check = json!({"type": "http", "port": 80});
        check[field] = value;
        json!({"health_check": check})
    };
    let cases = [
        (json!({"name": ""}), "name"),
        (json!({"name": "a/b"}), "name"),
        (json!({"name": "/"}), "name"),
        (json!({"name": "123"}), "name"),
        (json!({"name": 5}), "name"),
        (json!({"name": "a\u{0}b"}), "name"),
        (json!({"restart": "always"}), "restart"),
        (json!({"restart": {"policy": "sometimes"}}), "restart.policy"),
        (json!({"restart": {"policy": 1}}), "restart.policy"),
        (json!({"restart": {"max_restarts": -1}}), "restart.max_restarts"),
        (json!({"restart": {"initial_backoff_ms": -1}}), "restart.initial_backoff_ms"),
        (json!({"restart": {"initial_backoff_ms": 1e18}}), "restart.initial_backoff_ms"),
        (json!({"restart": {"max_backoff_ms": 86_400_001}}), "restart.max_backoff_ms"),
        (json!({"restart": {"max_backoff_ms": "5s"}}), "restart.max_backoff_ms"),
        (json!({"name": "a", "stop_grace_ms": -1}), "stop_grace_ms"),
        (json!({"name": "a", "stop_grace_ms": 86_400_001}), "stop_grace_ms"),
        (json!({"stop_grace_ms": 1.5}), "stop_grace_ms"),
        (json!({"health_check": {"type": "tcp"}}), "port"),
        (json!({"health_check": {"port": 80}}), "type"),
        (json!({"health_check": []}), "health_check"),
        (json!({"health_check": {"type": "tcp", "port": 80, "path": "/"}}), "health_check.path"),
        (check("type", json!("udp")), "health_check.type"),
        (check("port", json!(0)), "health_check.port"),
        (check("port", json!(70_000)), "health_check.port"),
        (check("port", json!(-1)), "health_check.port"),
        (check("path", json!("up")), "health_check.path"),
        (check("path", json!("/a b")), "health_check.path"),
        (check("path", json!("/\r\nX: y")), "health_check.path"),
        (check("initial_delay_ms", json!(-1)), "health_check.initial_delay_ms"),
        (check("interval_ms", json!(0)), "health_check.interval_ms"),
        (check("interval_ms", json!(1e15)), "health_check.interval_ms"),
        (check("timeout_ms", json!(0)), "health_check.timeout_ms"),
        (check("timeout_ms", json!(u64::MAX)), "health_check.timeout_ms"),
        (check("failure_threshold", json!(0)), "health_check.failure_threshold"),
    ];
    for (fields, needle) in cases {
        let mut body = json!({"command": "true"});
        for (key, value) in fields.as_object().expect("fields") {
            body[key] = value.clone();
        }
        daemon.post("/processes", &body).expect_error(400, "INVALID_REQUEST", needle);
    }
    assert_eq!(daemon.list(), [Value::Null; 0], "nothing was started");
}
