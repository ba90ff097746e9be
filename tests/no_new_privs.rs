//! `--no-new-privs` and the field `no_new_privs`: what a process executes gives it no privileges.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::options::program;
use crate::harness::{Daemon, Options, TIMEOUT, bound_command, skip_without_root, start_daemon, wait_until};

/// A copy of `id` with set-user-ID of root.
fn set_user_id(daemon: &Daemon) -> PathBuf {
    let path = daemon.scratch().join("set-user-id");
    std::fs::copy("/usr/bin/id", &path).expect("copy a program");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).expect("set its mode");
    path
}

/// A command that prints the flag, and the effective user of a program with set-user-ID.
fn probe(program: &std::path::Path, more: &Value) -> Value {
    let script = "grep ^NoNewPrivs /proc/self/status | tr -dc 01; echo; \"$0\" -un";
    let mut body = json!({"command": "sh", "args": ["-c", script, program], "user": "tl-user"});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[test]
fn the_field_and_the_option_take_effect_in_every_kind_of_start() {
    if skip_without_root() {
        return;
    }
    let with_option = Options::default().args(&["--no-new-privs"]).start();
    let by_variable = Options::default().env("TL_INIT_NO_NEW_PRIVS", "1").start();
    let (gains, denied) = ("0\nroot", "1\ntl-user");
    for (daemon, default) in [(start_daemon(), gains), (with_option, denied), (by_variable, denied)] {
        let program = set_user_id(&daemon);
        // With the option, `false` is the same as nothing: the option is for all.
        for (field, expected) in [(json!(null), default), (json!(false), default), (json!(true), denied)] {
            let more = json!({"no_new_privs": field});
            assert_eq!(daemon.run(&probe(&program, &more)).stdout(), expected, "{more}");
            let lines: Vec<&str> = expected.lines().collect();
            let body = probe(&program, &more);
            let pid = crate::harness::pid_of(&daemon.start_process(&body));
            daemon.wait_for_stdout(pid, &lines);
            let out = daemon.scratch().join("out");
            let script = "grep ^NoNewPrivs /proc/self/status | tr -dc 01 >\"$0\"; echo >>\"$0\"; \"$1\" -un >>\"$0\"";
            let body = json!({"command": "sh", "args": ["-c", script, out, program], "user": "tl-user", "no_new_privs": field});
            daemon.post("/pty", &body).expect(201);
            wait_until(TIMEOUT, "the session has printed both lines", || {
                let text = std::fs::read_to_string(&out).ok()?;
                (text.trim_end() == expected).then_some(())
            });
            std::fs::remove_file(&out).expect("remove it");
        }
        // A process that the daemon forks itself.
        let long = vec!["x".repeat(100_000); 3];
        let mut body = probe(&program, &json!({"no_new_privs": true}));
        let args = body["args"].as_array_mut().expect("a list");
        args.extend(long.into_iter().map(Value::from));
        assert_eq!(daemon.run(&body).stdout(), denied);
    }
}

#[test]
fn restarts_services_and_main_processes_have_it_too() {
    if skip_without_root() {
        return;
    }
    let config = tempfile::tempdir().expect("create a directory");
    std::fs::create_dir(config.path().join("services")).expect("create a directory");
    let flag = "grep ^NoNewPrivs /proc/self/status | tr -dc 01; echo; exec sleep 4880";
    let service = json!({"command": "sh", "args": ["-c", flag], "name": "service", "no_new_privs": true});
    std::fs::write(config.path().join("services/a.json"), service.to_string()).expect("write a service");
    let options = Options::default().args(&["--config-dir", config.path().to_str().expect("a path")]);
    let daemon = options.clone().start();
    let lines = |count: usize| {
        wait_until(TIMEOUT, "the service has printed it", || {
            let listing = daemon.get("/processes/service/stdout").expect(200);
            (listing["lines"] == json!(vec!["1"; count])).then_some(())
        });
    };
    lines(1);
    daemon.post("/processes/service/restart", &json!({})).expect(200);
    lines(2);
    std::fs::write(config.path().join("init.conf"), "TL_INIT_NO_NEW_PRIVS=1\n").expect("write init.conf");
    let out = config.path().join("out");
    let script = format!("grep ^NoNewPrivs /proc/self/status >{}; exec sleep 4881", out.display());
    let main = options.args(&["--default-user", "root", "--", "sh", "-c", &script]).start();
    wait_until(TIMEOUT, "the main process has printed it", || {
        (std::fs::read_to_string(&out).ok()? == "NoNewPrivs:\t1\n").then_some(())
    });
    drop(main);
}

#[test]
fn a_value_that_is_no_boolean_is_refused() {
    let daemon = start_daemon();
    for value in [json!(1), json!(0), json!("true"), json!([]), json!({})] {
        for path in ["/processes", "/processes/run", "/pty"] {
            let response = daemon.post(path, &json!({"command": "true", "no_new_privs": value}));
            response.expect_error(400, "INVALID_REQUEST", "`no_new_privs`: must be true or false");
        }
    }
    daemon.check_nothing_started();
}

#[test]
fn tlctl_has_the_option_for_a_run_and_a_start() {
    let daemon = start_daemon();
    let state = daemon.state_dir();
    let ctl = |args: &[&str]| {
        let mut command = bound_command(program());
        command.arg("ctl").args(args).env("TL_INIT_URL", format!("http://{}", daemon.addr));
        command.env("TL_INIT_TOKEN_FILE", state.join("run/token"));
        let output = command.stdin(std::process::Stdio::null()).output().expect("run the client");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let flag = ["--", "grep", "^NoNewPrivs", "/proc/self/status"];
    assert_eq!(ctl(&[&["run", "--no-new-privs"], &flag[..]].concat()), "NoNewPrivs:\t1\n");
    assert_eq!(ctl(&[&["run"], &flag[..]].concat()), "NoNewPrivs:\t0\n");
    let pid = ctl(&[&["start", "--no-new-privs"], &flag[..]].concat());
    daemon.wait_for_stdout(pid.trim().parse().expect("a PID"), &["NoNewPrivs:\t1"]);
}
