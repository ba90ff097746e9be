//! The boot as PID 1 of a namespace: the report of `GET /boot`, `init.conf`, and services from files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Daemon, Options, TIMEOUT, start_daemon, wait_until};

/// Creates a configuration directory with these files; returns it and options that use it.
fn with_config_files(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Options) {
    let dir = tempfile::tempdir().expect("create a directory");
    fs::create_dir(dir.path().join("services")).expect("create a directory");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("create a file");
    }
    let options = Options::default().args(&["--config-dir", dir.path().to_str().expect("a path")]);
    (dir, options)
}

/// Waits until the boot report has an entry for this service file; returns the entry.
fn wait_for_report_of(daemon: &Daemon, file: &str) -> Value {
    wait_until(TIMEOUT, &format!("{file} is in the report"), || {
        let report = daemon.boot();
        let services = report["services"].as_array().expect("services");
        services.iter().find(|service| service["file"] == file).cloned()
    })
}

fn wait_for_service(daemon: &Daemon, file: &str, what: &str, right: impl Fn(&Value) -> bool) -> Value {
    wait_until(TIMEOUT, &format!("{file}: {what}"), || {
        Some(wait_for_report_of(daemon, file)).filter(|service| right(service))
    })
}

#[test]
fn boot_report_lists_the_duties_of_a_namespace_and_ends_with_listening() {
    let daemon = start_daemon();
    let report = daemon.boot();
    let steps = report["steps"].as_array().expect("steps");
    for name in ["/proc", "/dev/pts", "/dev/shm", "/run", "/sys/fs/cgroup", "loopback", "cgroup", "listening"] {
        let step = steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"));
        assert!(step["ok"] == true && step["detail"].is_string() && step["ms"].is_f64(), "{step}");
    }
    // Duties of a machine are not performed in a namespace.
    for name in ["root", "hostname", "ctrl-alt-del", "console", "random seed"] {
        assert!(steps.iter().all(|step| step["name"] != name), "{report}");
    }
    let listening = steps.last().expect("a step");
    assert_eq!((&listening["name"], &listening["detail"]), (&json!("listening"), &json!(daemon.addr.to_string())));
    // The goal is 5 ms. A busy machine delays one start or another, but not each of five.
    let time_of = |report: &Value| report["steps"].as_array().and_then(|steps| steps.last()?["ms"].as_f64());
    let later_times = (0..4).map(|_| time_of(&start_daemon().boot()));
    let is_fast = |ms: Option<f64>| ms.expect("a number") < 50.0 * f64::from(SLOW_MACHINE_FACTOR);
    assert!([time_of(&report)].into_iter().chain(later_times).any(is_fast), "{report}");
    assert_eq!(report["services"], json!([]));
    daemon.post("/boot", &json!({})).expect_error(405, "METHOD_NOT_ALLOWED", "/api/v1/boot");
}

/// Factor for a debug build on a busy machine.
const SLOW_MACHINE_FACTOR: u8 = 20;

#[test]
fn a_subreaper_reports_only_the_listening_step() {
    let daemon = Options::subreaper().start();
    let report = daemon.boot();
    let names: Vec<&Value> = report["steps"].as_array().expect("steps").iter().map(|step| &step["name"]).collect();
    assert_eq!(names, ["listening"]);
}

#[test]
fn services_start_in_the_order_of_their_file_names() {
    let body = |name: &str| format!(r#"{{"command": "sleep", "args": ["600"], "name": "{name}"}}"#).into_bytes();
    let (_dir, options) = with_config_files(&[
        ("services/20-second.json", &body("second")),
        ("services/10-first.json", &body("first")),
        ("services/30-plain.json", br#"{"command": "sleep", "args": ["600"]}"#),
        ("services/notes.txt", b"not one"),
    ]);
    let daemon = options.start();
    let third = wait_for_report_of(&daemon, "30-plain.json");
    assert!(third["ok"] == true && third["pid"].is_u64(), "{third}");
    let list = daemon.list();
    let names: Vec<&Value> = list.iter().map(|info| &info["managed"]["name"]).collect();
    assert_eq!(names, [&json!("first"), &json!("second"), &Value::Null], "{list:?}");
    let report = daemon.boot();
    let files: Vec<&Value> = report["services"].as_array().expect("services").iter().map(|one| &one["file"]).collect();
    assert_eq!(files, ["10-first.json", "20-second.json", "30-plain.json"]);
    assert_eq!(report["services"][0]["pid"], list[0]["pid"]);
}

#[test]
fn an_invalid_service_file_is_reported_and_skipped() {
    let garbage = vec![b'{'; 10 << 20];
    let (dir, options) = with_config_files(&[
        ("services/10-garbage.json", &garbage),
        ("services/20-not-json.json", b"\xff\xfe{"),
        ("services/30-bad-field.json", br#"{"command": "true", "restart": {"policy": "sometimes"}}"#),
        ("services/40-no-program.json", br#"{"command": "/nowhere"}"#),
        ("services/50-good.json", br#"{"command": "sleep", "args": ["600"]}"#),
        ("init.conf", b"# settings\nTL_INIT_KEEP_ENDED=3\nTL_INIT_NONSENSE=1\nOTHER=2\n"),
    ]);
    nix::unistd::mkfifo(&dir.path().join("services/45-fifo.json"), nix::sys::stat::Mode::S_IRWXU)
        .expect("create a FIFO");
    let daemon = options.start();
    assert!(wait_for_report_of(&daemon, "50-good.json")["ok"] == true);
    for (file, part) in [
        ("10-garbage.json", "1 MiB"),
        ("20-not-json.json", "expected"),
        ("30-bad-field.json", "restart.policy"),
        ("40-no-program.json", "/nowhere"),
        ("45-fifo.json", "regular"),
    ] {
        let reported = wait_for_report_of(&daemon, file);
        assert!(reported["ok"] == false && reported["pid"].is_null(), "{reported}");
        assert!(reported["detail"].as_str().expect("a sentence").contains(part), "{reported}");
        assert!(daemon.log().contains(file), "in the log as well");
    }
    let steps = daemon.boot()["steps"].to_string();
    assert!(steps.contains("TL_INIT_NONSENSE") && steps.contains("OTHER") && !steps.contains("KEEP_ENDED"), "{steps}");
}

#[test]
fn the_environment_overrides_init_conf() {
    let (_dir, options) = with_config_files(&[("init.conf", b"TL_INIT_MAX_PROCESSES=1\nTL_INIT_MAX_BODY=100\n")]);
    let daemon = options.env("TL_INIT_MAX_BODY", "1M").start();
    let long = "x".repeat(1000);
    daemon.start_process(&json!({"command": "sleep", "args": ["600"], "env": {"LONG": long}}));
    daemon.post("/processes", &json!({"command": "true"})).expect_error(429, "TOO_MANY_PROCESSES", "1");
}

#[test]
fn sighup_starts_new_services_and_stops_removed_ones() {
    let sleep = |seconds: &str| format!(r#"{{"command": "sleep", "args": ["{seconds}"], "name": "s{seconds}"}}"#);
    let (dir, options) = with_config_files(&[
        ("services/stays.json", sleep("5601").as_bytes()),
        ("services/changes.json", sleep("5602").as_bytes()),
        ("services/goes.json", sleep("5603").as_bytes()),
    ]);
    let daemon = options.start();
    let stays = wait_for_service(&daemon, "stays.json", "the process runs", |service| service["ok"] == true);
    daemon.wait_for_processes("sleep 5602", 1);
    let path = |name: &str| dir.path().join("services").join(name);
    write(&path("changes.json"), &sleep("5604"));
    fs::remove_file(path("goes.json")).expect("remove the file");
    write(&path("new.json"), &sleep("5605"));
    daemon.signal(Signal::SIGHUP);
    wait_for_service(&daemon, "new.json", "the process runs", |service| service["ok"] == true);
    assert_eq!(wait_for_report_of(&daemon, "stays.json"), stays, "the unchanged service keeps running");
    for gone in ["sleep 5602", "sleep 5603"] {
        assert_eq!(daemon.pids_executing(gone), [0; 0], "{gone}");
    }
    // A start is reported before the kernel shows the new command line.
    for up in ["sleep 5601", "sleep 5604", "sleep 5605"] {
        daemon.wait_for_processes(up, 1);
    }
    let report = daemon.boot();
    assert_eq!(report["services"].as_array().expect("services").len(), 3, "{report}");
    daemon.wait_until_gone(TIMEOUT, "sleep 5603");
}

#[test]
fn a_service_file_that_becomes_invalid_leaves_its_service_running() {
    let sleep = |seconds: &str| format!(r#"{{"command": "sleep", "args": ["{seconds}"], "name": "one"}}"#);
    let (dir, options) = with_config_files(&[("services/one.json", sleep("5606").as_bytes())]);
    let daemon = options.start();
    let started = wait_for_service(&daemon, "one.json", "the process runs", |service| service["ok"] == true);
    let file = dir.path().join("services/one.json");
    for (text, part) in [
        (r#"{"command": "sleep", "args": ["5607"]"#, "EOF"),
        (r#"{"command": "sleep", "args": "5607"}"#, "args"),
        (r#"{"command": ""}"#, "command"),
    ] {
        write(&file, text);
        daemon.signal(Signal::SIGHUP);
        let reported = wait_for_service(&daemon, "one.json", text, |service| {
            service["detail"].as_str().is_some_and(|detail| detail.contains(part))
        });
        assert_eq!((&reported["ok"], &reported["pid"]), (&json!(false), &started["pid"]), "{reported}");
        assert_eq!(daemon.get("/processes/one").expect(200)["status"], "running", "{text}");
    }
    assert!(daemon.log().contains("service one.json"), "in the log as well: {}", daemon.log());
    // Restoring the old content changes nothing; other valid content restarts the service.
    write(&file, &sleep("5606"));
    daemon.signal(Signal::SIGHUP);
    let reported = wait_for_service(&daemon, "one.json", "the file is valid again", |service| service["ok"] == true);
    assert_eq!(reported, started);
    write(&file, "{");
    daemon.signal(Signal::SIGHUP);
    wait_for_service(&daemon, "one.json", "the file is invalid again", |service| service["ok"] == false);
    write(&file, &sleep("5608"));
    daemon.signal(Signal::SIGHUP);
    let reported = wait_for_service(&daemon, "one.json", "the new service runs", |service| service["ok"] == true);
    assert_ne!(reported["pid"], started["pid"]);
    daemon.wait_until_gone(TIMEOUT, "sleep 5606");
}

#[test]
fn sighup_retries_a_service_that_could_not_be_started() {
    let (dir, options) = with_config_files(&[]);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("make it accessible to all");
    let program = dir.path().join("late");
    write(&dir.path().join("services/late.json"), &json!({"command": program}).to_string());
    let daemon = options.start();
    assert_eq!(wait_for_report_of(&daemon, "late.json")["ok"], false);
    write(&program, "#!/bin/sh\nexec sleep 600\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("make it executable");
    // A concurrent fork of another test can hold the script open for writing, which makes its exec fail: retry.
    wait_until(TIMEOUT, "the process runs", || {
        daemon.signal(Signal::SIGHUP);
        (wait_for_report_of(&daemon, "late.json")["ok"] == true).then_some(())
    });
}

/// The old service may need its grace, and may hold a port that the new one needs.
#[test]
fn a_changed_service_starts_after_the_old_one_has_ended() {
    let old = r#"{"command": "sh", "name": "one", "args": ["-c",
        "trap 'sleep 3; echo ended >>$SAID; exit' TERM; echo up >>$SAID; while :; do sleep 0.02; done"],
        "env": {"SAID": "@"}, "stop_grace_ms": 60000}"#;
    let new = r#"{"command": "sh", "name": "one", "args": ["-c", "echo new >>$SAID; exec sleep 600"],
        "env": {"SAID": "@"}}"#;
    let (dir, options) = with_config_files(&[]);
    let daemon = options.start();
    let said = daemon.scratch().join("said");
    let (file, fill) = (dir.path().join("services/one.json"), |text: &str| text.replace('@', &said.to_string_lossy()));
    let wait_for_said = |right: &str| {
        let said = || std::fs::read_to_string(&said).unwrap_or_default();
        wait_until(TIMEOUT, &format!("the services have written {right:?}"), || {
            (said().ends_with(right)).then_some(())
        });
        said()
    };
    write(&file, &fill(old));
    daemon.signal(Signal::SIGHUP);
    wait_for_said("up\n");
    write(&file, &fill(new));
    daemon.signal(Signal::SIGHUP);
    assert_eq!(wait_for_said("new\n"), "up\nended\nnew\n");
}

/// As with a stopped `docker run -t` client, a terminal that is not read must not block the log.
#[test]
fn a_full_terminal_on_stderr_delays_neither_services_nor_shutdown() {
    let terminal = nix::pty::openpty(None, None).expect("open a terminal");
    let (dir, options) = with_config_files(&[]);
    let mut daemon = options.stderr(terminal.slave).start();
    // Each file causes one log line; together they exceed the buffer of any terminal.
    for number in 0..1000 {
        let name = format!("{number}-{}.json", "x".repeat(200));
        write(&dir.path().join("services").join(&name), "{");
        if number % 100 == 99 {
            daemon.signal(Signal::SIGHUP);
            wait_for_report_of(&daemon, &name);
        }
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("write a service");
}
