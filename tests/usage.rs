//! What processes have used (docs/api.md, Process control), and limits where no cgroup has controllers. Those that need
//! controllers are in `tests/vm/test_usage.py`.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::need::skip;
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Options, TIMEOUT, start_daemon, start_daemon_with, wait_until};

/// Uses half a second of CPU time, and some memory.
const BURN: &str = "import time\nkept = bytearray(64 << 20)\nwhile time.process_time() < 0.5: pass";

fn usage(daemon: &Daemon, process: impl std::fmt::Display) -> Value {
    let usage = daemon.get(&format!("/processes/{process}/usage")).expect(200);
    assert!(usage["scope"] == "leader" || usage["scope"] == "tree", "{usage}");
    usage
}

fn cpu_ms(usage: &Value) -> u64 {
    usage["cpu_user_ms"].as_u64().expect("user CPU time") + usage["cpu_system_ms"].as_u64().expect("system CPU time")
}

/// Whether units have cgroups with a memory controller here.
fn has_controllers(daemon: &Daemon) -> bool {
    usage(daemon, daemon.sh("exit 0"))["scope"] == "tree"
}

#[test]
fn the_usage_of_a_program_of_known_consumption_is_right_while_it_runs_and_after_its_end() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        let script = format!("{BURN}\nprint('burnt', flush=True)\nimport sys\nsys.stdin.read()");
        let body = json!({"command": "python3", "args": ["-c", script], "stdin_mode": "pipe"});
        let pid = daemon.start_process(&body)["pid"].as_u64().expect("a PID");
        daemon.wait_for_stdout(pid, &["burnt"]);
        let running = usage(&daemon, pid);
        assert!((475..800).contains(&cpu_ms(&running)), "{running}");
        let memory = running["memory_bytes"].as_u64().expect("memory");
        assert!((64 << 20..128 << 20).contains(&memory), "{running}");
        assert!(running["memory_peak_bytes"].as_u64() >= Some(memory), "{running}");
        assert_eq!(running["processes"], 1, "{running}");
        daemon.post(&format!("/processes/{pid}/stdin/close"), &json!({})).expect(204);
        daemon.wait_for_end(pid);
        let ended = usage(&daemon, pid);
        assert!(cpu_ms(&ended) + 20 >= cpu_ms(&running) && cpu_ms(&ended) < 900, "{running} {ended}");
        assert!(ended["memory_peak_bytes"].as_u64() >= Some(64 << 20), "{ended}");
        assert_eq!(ended["processes"], 0, "{ended}");
        assert_eq!(usage(&daemon, pid), ended, "it does not change any more");
        for field in ["read_bytes", "written_bytes", "oom_kills"] {
            assert!(ended[field].is_u64() || ended[field].is_null() && field == "oom_kills", "{ended}");
        }
    }
}

#[test]
fn the_cpu_time_of_children_that_were_waited_for_counts() {
    let daemon = start_daemon();
    let pid = daemon.sh("python3 -c 'import time\nwhile time.process_time() < 0.4: pass'; echo waited; sleep 6100");
    daemon.wait_for_stdout(pid, &["waited"]);
    assert!(cpu_ms(&usage(&daemon, pid)) >= 380);
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    assert!(cpu_ms(&usage(&daemon, pid)) >= 380, "after its end too");
}

#[test]
fn a_managed_process_shows_its_current_or_last_run() {
    let daemon = start_daemon();
    let script = format!("{BURN}\nopen('ran', 'a').write('x')\nif len(open('ran').read()) > 1: time.sleep(6101)");
    let dir = daemon.scratch();
    let body = json!({
        "command": "python3", "args": ["-c", script], "name": "burner", "working_dir": dir,
        "restart": {"policy": "always", "initial_backoff_ms": 86_400_000, "max_backoff_ms": 86_400_000},
    });
    daemon.start_process(&body);
    wait_until(TIMEOUT, "its first run has ended", || {
        (daemon.get("/processes/burner").expect(200)["managed"]["status"] == "backing_off").then_some(())
    });
    assert!(cpu_ms(&usage(&daemon, "burner")) >= 475, "the last run");
    daemon.post("/processes/burner/restart", &json!({})).expect(200);
    let begun = Instant::now();
    let restarted = usage(&daemon, "burner");
    // The run has only begun.
    assert!(
        u128::from(cpu_ms(&restarted)) <= begun.elapsed().as_millis() + 300 && cpu_ms(&restarted) < 475,
        "{restarted}"
    );
}

/// The PID of the process is in `/proc`, but as that of a child of the test.
#[test]
fn the_usage_of_another_process_is_not_shown_where_proc_is_that_of_another_namespace() {
    let daemon = Options::default().without_cgroup().outer_proc().start();
    // They end when their stdin is closed, also if the test fails.
    let other = || Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("start cat");
    let mut others: Vec<Child> = (0..10).map(|_| other()).collect();
    let pids: Vec<u64> = others.iter().map(|child| child.id().into()).collect();
    let set_last_pid = format!("echo {} >/proc/sys/kernel/ns_last_pid", pids[0] - 1);
    let set_last_pid = json!({"command": "sh", "args": ["-c", set_last_pid], "user": "root"});
    if daemon.run(&set_last_pid).code() != Some(0) {
        return skip("a writable ns_last_pid");
    }
    // The first of these PIDs may be taken by a thread of the daemon.
    let start =
        |_| daemon.start_process(&json!({"command": "sleep", "args": ["6109"]}))["pid"].as_u64().expect("a PID");
    let pid = (0..10).map(start).find(|pid| pids.contains(pid)).expect("a process has one of the PIDs");
    let running = usage(&daemon, pid);
    assert!(running["memory_bytes"].is_null() && running["cpu_user_ms"].is_null(), "{running}");
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    assert!(usage(&daemon, pid)["memory_peak_bytes"].is_u64(), "what wait4 says of its end is right");
    for other in &mut others {
        other.wait().expect("wait for cat");
    }
}

#[test]
fn an_unknown_process_has_no_usage_and_the_usage_goes_with_its_process() {
    let daemon = start_daemon_with(&["--keep-ended", "1"]);
    daemon.get("/processes/nothing/usage").expect_error(404, "NOT_FOUND", "nothing");
    daemon.get("/processes/4000000/usage").expect_error(404, "NOT_FOUND", "4000000");
    let first = daemon.run_sh("exit 0").pid();
    usage(&daemon, first);
    daemon.run_sh("exit 0");
    daemon.get(&format!("/processes/{first}/usage")).expect_error(404, "NOT_FOUND", "");
    let session = daemon.post("/pty", &json!({"command": "sleep", "args": ["6102"]})).expect(201);
    let session = daemon.get(&format!("/pty/{}", session["session_id"].as_str().expect("an id"))).expect(200);
    daemon.get(&format!("/processes/{}/usage", session["pid"])).expect_error(404, "NOT_FOUND", "");
}

#[test]
fn the_usage_of_a_thousand_processes_takes_less_than_a_second_over_one_connection() {
    let daemon = start_daemon();
    let pids: Vec<u64> = (0..20).map(|_| daemon.sh("exec sleep 6103")).collect();
    let mut fastest = u128::MAX;
    for _ in 0..3 {
        let mut socket = daemon.connect();
        let begun = Instant::now();
        for pid in pids.iter().cycle().take(1000) {
            let head = daemon.request_head("GET", &format!("/processes/{pid}/usage"), "");
            socket.write_all(head.as_bytes()).expect("send");
            let mut response = ResponseStream::read(socket).expect("a response").expect_status(200);
            std::io::copy(&mut response, &mut std::io::sink()).expect("a body");
            socket = response.into_socket();
        }
        fastest = fastest.min(begun.elapsed().as_millis());
    }
    println!("1,000 usages: {fastest} ms");
    // Ten times the goal for an idle machine.
    assert!(fastest < 1000, "{fastest} ms");
}

#[test]
fn open_files_is_the_limit_of_every_kind_of_start() {
    let daemon = start_daemon();
    let limits = json!({"open_files": 77});
    let show = json!({"command": "sh", "args": ["-c", "ulimit -Sn; ulimit -Hn"], "limits": limits});
    assert_eq!(daemon.run(&show).lines("stdout"), ["77", "77"]);
    let info = daemon.start_process(&show);
    assert_eq!(
        info["limits"],
        json!({
            "memory_bytes": null, "memory_high_bytes": null, "cpus": null, "cpu_weight": null, "processes": null,
            "open_files": 77,
        })
    );
    let pid = info["pid"].as_u64().expect("a PID");
    daemon.wait_for_stdout(pid, &["77", "77"]);
    let mut managed = show.clone();
    managed["args"][1] = json!("ulimit -n; sleep 6104");
    managed["name"] = json!("limited");
    let pid = daemon.start_process(&managed)["pid"].as_u64().expect("a PID");
    daemon.wait_for_stdout(pid, &["77"]);
    daemon.post("/processes/limited/restart", &json!({})).expect(200);
    wait_until(TIMEOUT, "each run has the limit", || {
        (daemon.get("/processes/limited/stdout").expect(200)["lines"] == json!(["77", "77"])).then_some(())
    });
    let file = daemon.scratch().join("of-terminal");
    let script = format!("ulimit -n >{}; exec sleep 6105", file.display());
    daemon
        .post("/pty", &json!({"command": "sh", "args": ["-c", script], "user": "root", "limits": limits}))
        .expect(201);
    wait_until(TIMEOUT, "the terminal has the limit", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text == "77\n").then_some(())
    });
    // Without a limit, it is the one that the daemon was started with.
    let plain = daemon.run_sh("ulimit -n").stdout();
    assert_ne!(plain.trim(), "77");
    assert_eq!(daemon.start_process(&json!({"command": "true", "limits": {}}))["limits"], Value::Null);
}

#[test]
fn open_files_above_the_hard_limit_of_a_daemon_without_the_privilege_is_refused() {
    // Root without CAP_SYS_RESOURCE (24) cannot raise a hard limit.
    let drop = "exec setpriv --bounding-set -sys_resource --inh-caps -sys_resource \"$@\"";
    let daemon = Options::default().max_descriptors(5000).prepare(drop).start();
    let start = |most: u64| daemon.post("/processes", &json!({"command": "true", "limits": {"open_files": most}}));
    start(5000).expect(201);
    start(5001).expect_error(400, "INVALID_REQUEST", "`limits.open_files` must be at most 5000");
    daemon.post("/processes/run", &json!({"command": "true", "limits": {"open_files": 5001}})).expect_error(
        400,
        "INVALID_REQUEST",
        "`limits.open_files`",
    );
    daemon.post("/pty", &json!({"command": "true", "limits": {"open_files": 5001}})).expect_error(
        400,
        "INVALID_REQUEST",
        "`limits.open_files`",
    );
}

#[test]
fn a_limit_of_a_missing_controller_is_refused_by_its_name_and_nothing_is_started() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        if has_controllers(&daemon) {
            continue;
        }
        let before = daemon.list().len();
        for (limit, value) in [
            ("memory_bytes", json!(64 << 20)),
            ("memory_high_bytes", json!(64 << 20)),
            ("cpus", json!(0.5)),
            ("cpu_weight", json!(50)),
            ("processes", json!(20)),
        ] {
            let body =
                json!({"command": "sh", "args": ["-c", "sleep 6106"], "limits": {limit: value, "open_files": 50}});
            for path in ["/processes", "/processes/run", "/pty"] {
                let refused = daemon.post(path, &body);
                refused.expect_error(400, "LIMIT_NOT_AVAILABLE", &format!("`limits.{limit}`"));
            }
            let mut managed = body.clone();
            managed["name"] = json!("limited");
            daemon.post("/processes", &managed).expect_error(400, "LIMIT_NOT_AVAILABLE", &format!("`limits.{limit}`"));
            daemon.get("/processes/limited").expect_error(404, "NOT_FOUND", "");
        }
        assert_eq!(daemon.list().len(), before);
        assert!(daemon.pids_matching("sleep 6106").is_empty());
    }
}

#[test]
fn invalid_limits_are_refused_with_the_name_of_the_field() {
    let daemon = start_daemon();
    let before = daemon.list().len();
    let huge = json!(1_u64 << 62);
    for (limit, value) in [
        ("memory_bytes", json!(0)),
        ("memory_bytes", json!(-1)),
        ("memory_bytes", json!("64M")),
        ("memory_bytes", json!(1.5)),
        ("memory_bytes", huge.clone()),
        ("memory_bytes", json!(1e300)),
        ("memory_high_bytes", json!(0)),
        ("memory_high_bytes", json!([])),
        ("memory_high_bytes", huge.clone()),
        ("cpus", json!(0)),
        ("cpus", json!(-0.5)),
        ("cpus", json!("1")),
        ("cpus", json!(0.001)),
        ("cpus", json!(100_000)),
        ("cpu_weight", json!(0)),
        ("cpu_weight", json!(10_001)),
        ("cpu_weight", json!(true)),
        ("processes", json!(0)),
        ("processes", json!(-5)),
        ("processes", huge.clone()),
        ("processes", json!({})),
        ("open_files", json!(0)),
        ("open_files", json!(-1)),
        ("open_files", huge),
        ("open_files", json!("many")),
    ] {
        for path in ["/processes", "/processes/run", "/pty"] {
            let response = daemon.post(path, &json!({"command": "true", "limits": {limit: value}}));
            response.expect_error(400, "INVALID_REQUEST", &format!("`limits.{limit}`"));
        }
    }
    for value in [json!(5), json!([]), json!("memory")] {
        let response = daemon.post("/processes", &json!({"command": "true", "limits": value}));
        response.expect_error(400, "INVALID_REQUEST", "`limits`");
    }
    assert_eq!(daemon.list().len(), before);
}

#[test]
fn default_limits_apply_one_by_one_and_what_is_not_available_is_logged_once() {
    let defaults = r#"{"open_files": 66, "processes": 4000, "memory_bytes": 1073741824000000}"#;
    let daemon = start_daemon_with(&["--default-limits", defaults]);
    let show = |limits: Value| json!({"command": "sh", "args": ["-c", "ulimit -n"], "limits": limits});
    assert_eq!(daemon.run(&show(Value::Null)).lines("stdout"), ["66"]);
    assert_eq!(daemon.run(&show(json!({"open_files": null}))).lines("stdout"), ["66"]);
    assert_eq!(daemon.run(&show(json!({"open_files": 55}))).lines("stdout"), ["55"]);
    let info = daemon.start_process(&show(Value::Null));
    assert_eq!((&info["limits"]["open_files"], &info["limits"]["memory_bytes"]), (&json!(66), &Value::Null), "{info}");
    let log = daemon.log();
    assert_eq!(log.matches("`limits.memory_bytes` must be at most").count(), 1, "{log}");
    if !has_controllers(&daemon) {
        assert_eq!(log.matches("no cgroup can set them: processes").count(), 1, "{log}");
        assert_eq!(info["limits"]["processes"], Value::Null);
    }
}

#[test]
fn the_metrics_have_the_usage_by_status_and_of_the_named_processes_only() {
    let options = ["--metrics-per-process", "burner,absent", "--metrics-per-process", "sleeper"];
    let daemon = start_daemon_with(&options);
    let script = format!("{BURN}\nprint('burnt', flush=True)\ntime.sleep(6107)");
    let burner = daemon.start_process(&json!({"command": "python3", "args": ["-c", script], "name": "burner"}));
    daemon.start_process(&json!({"command": "sleep", "args": ["6108"], "name": "other"}));
    daemon.wait_for_stdout(burner["pid"].as_u64().expect("a PID"), &["burnt"]);
    let ended = json!({"command": "python3", "args": ["-c", BURN]});
    assert_eq!(daemon.run(&ended).code(), Some(0));
    let text = String::from_utf8(daemon.get("/metrics").body).expect("UTF-8");
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("tl_supervisor_{name} ")));
        line.unwrap_or_else(|| panic!("{name}:\n{text}")).parse().expect("a number")
    };
    for status in ["running", "exited"] {
        let of = |mode| value(&format!("processes_cpu_seconds{{status=\"{status}\",mode=\"{mode}\"}}"));
        assert!((0.47..2.0).contains(&(of("user") + of("system"))), "{text}");
    }
    assert!(value("processes_memory_bytes{status=\"running\"}") >= f64::from(64 << 20), "{text}");
    assert!(value("processes_tasks{status=\"running\"}") >= 2.0, "{text}");
    assert_eq!(value("processes_cpu_seconds{status=\"oom_killed\",mode=\"user\"}"), 0.0);
    let of = |mode| value(&format!("named_process_cpu_seconds_total{{name=\"burner\",mode=\"{mode}\"}}"));
    assert!(of("user") + of("system") >= 0.47, "{text}");
    assert!(value("named_process_memory_peak_bytes{name=\"burner\"}") >= f64::from(64 << 20), "{text}");
    for absent in ["name=\"other\"", "name=\"absent\"", "name=\"sleeper\""] {
        assert!(!text.contains(absent), "{absent}:\n{text}");
    }
}
