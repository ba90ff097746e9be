//! Retention and limits (docs/api.md, Limits).

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Options, TIMEOUT, pid_of, procfs, skip_without_root, start_daemon_with, wait_until};

const MIB: u64 = 1 << 20;

#[test]
fn keep_ended_drops_the_oldest_ended_process_and_never_a_live_one() {
    let daemon = start_daemon_with(&["--keep-ended", "5"]);
    let live = daemon.sh("echo up; sleep 4950");
    daemon.wait_for_stdout(live, &["up"]);
    let runs: Vec<_> = (0..20).map(|number| daemon.run_sh(&format!("echo {number}"))).collect();
    let list = daemon.list();
    let handles: Vec<u64> = list.iter().filter_map(|info| info["handle"].as_u64()).collect();
    let last_five: Vec<u64> = runs[15..].iter().filter_map(|run| run.first["handle"].as_u64()).collect();
    assert_eq!(list[0]["pid"], live);
    assert_eq!(&handles[1..], last_five);
    daemon.get(&format!("/processes/{}", runs[0].pid())).expect_error(404, "NOT_FOUND", "");
    daemon.get(&format!("/processes/{}/stdout", runs[0].pid())).expect_error(404, "NOT_FOUND", "");
    assert_eq!(daemon.lines(runs[19].pid(), "stdout"), ["19"]);
    assert_eq!(daemon.lines(live, "stdout"), ["up"]);
}

#[test]
fn a_log_above_log_limit_drops_its_oldest_part_and_reports_a_gap() {
    let limit = 4 * MIB;
    let daemon = start_daemon_with(&["--log-limit", &limit.to_string()]);
    // 16 bytes per line, 16 MiB in all.
    let lines = MIB;
    let script = format!("seq -f %015.0f 1 {lines}");
    let pid = daemon.sh(&script);
    assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
    let expected = |first: u64| (first..=lines).map(|number| format!("{number:015}"));
    let response = daemon.get(&format!("/processes/{pid}/stdout")).expect(200);
    assert_eq!(response["truncated"], true);
    let kept = response["lines"].as_array().expect("lines");
    let first = lines + 1 - kept.len() as u64;
    assert!(kept.iter().map(|line| line.as_str().unwrap_or("").to_owned()).eq(expected(first)));
    let raw = daemon.raw_output(pid, "stdout");
    assert!(raw.len() as u64 <= limit && raw.len() as u64 >= limit / 4, "{} bytes are kept", raw.len());
    let frames = daemon.follow(pid, "stdout").until_eof();
    assert_eq!(frames[0].event, "gap");
    let lost = frames[0].data["lost_bytes"].as_u64().expect("a number");
    assert_eq!(lost + raw.len() as u64, lines * 16);
    assert!(frames[1..].iter().all(|frame| frame.event == "output"));
    assert_eq!(frames.len() - 1, kept.len());
    assert_eq!(frames[frames.len() - 1].data["line"], format!("{lines:015}"));
    let disk = disk_usage(&daemon.state_dir().join("log"));
    assert!(disk <= limit + 2 * MIB, "{disk} bytes on disk");
    // A complete log has no `truncated`.
    let small = daemon.run_sh("echo x").pid();
    let response = daemon.get(&format!("/processes/{small}/stdout")).expect(200);
    assert!(response.get("truncated").is_none_or(|truncated| truncated == false), "{response}");
}

#[test]
fn a_truncated_log_begins_with_a_whole_line() {
    let daemon = start_daemon_with(&["--log-limit", "1M"]);
    const LINES: u64 = 400_000;
    let all: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
    // Both streams, and a follower that resumes after its next line was dropped.
    let script = format!("echo 0; read x; seq 1 {LINES}; seq 1 {LINES} >&2");
    let start = json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"});
    let pid = pid_of(&daemon.start_process(&start));
    let begun = daemon.follow(pid, "stdout").next_frame().expect("the first line");
    daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"go\n")).expect(204);
    daemon.wait_for_end(pid);
    // stderr was written last, so nothing of stdout is kept.
    assert!(daemon.lines(pid, "stdout").is_empty() && daemon.raw_output(pid, "stdout").is_empty());
    let away = daemon.follow_with(pid, "stdout", &format!("Last-Event-ID: {}\r\n", begun.id)).until_eof();
    assert_eq!(away.len(), 1);
    assert_eq!(away[0].data, json!({"lost_bytes": all.len()}));
    for view in ["stderr", "output"] {
        let kept = daemon.lines(pid, view);
        let first = LINES + 1 - kept.len() as u64;
        assert!((first..=LINES).map(|number| number.to_string()).eq(kept.iter().cloned()), "{view}: {}", kept[0]);
        let raw = daemon.raw_output(pid, view);
        assert!(all.as_bytes().ends_with(&raw) && raw.starts_with(format!("{first}\n").as_bytes()), "{view}");
        let frames = daemon.follow(pid, view).until_eof();
        assert_eq!((frames[0].event.as_str(), &frames[1].data["line"]), ("gap", &json!(kept[0])), "{view}");
        let written = if view == "output" { 2 + 2 * all.len() } else { all.len() };
        assert_eq!(frames[0].data, json!({"lost_bytes": written - raw.len()}), "{view}");
        let whole = daemon.lines(pid, &format!("{view}?tail={}", kept.len() + 1));
        assert!(whole == kept, "{view}");
    }
}

#[test]
fn output_of_a_live_process_survives_the_removal_of_the_log_directory() {
    let daemon = start_daemon_with(&[]);
    let script = "echo one; read x; echo two; read x; seq 3 5";
    let pid = pid_of(&daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"})));
    let old = daemon.run_sh("echo old").pid();
    let go_on = || daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"go\n")).expect(204);
    daemon.wait_for_stdout(pid, &["one"]);
    let mut follower = daemon.follow(pid, "stdout");
    assert_eq!(follower.next_frame().expect("the first line").data["line"], "one");
    std::fs::remove_dir_all(daemon.state_dir().join("log")).expect("remove the directory");
    go_on();
    assert_eq!(follower.next_frame().expect("the second line").data["line"], "two");
    go_on();
    assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
    assert_eq!(follower.all_lines(), ["3", "4", "5"]);
    let response = daemon.get(&format!("/processes/{pid}/stdout")).expect(200);
    assert_eq!((&response["lines"], &response["truncated"]), (&json!(["one", "two", "3", "4", "5"]), &json!(true)));
    // The log of a process that had ended is lost with its file. Later processes are not affected.
    let response = daemon.get(&format!("/processes/{old}/stdout")).expect(200);
    assert_eq!((&response["lines"], &response["truncated"]), (&json!([]), &json!(true)));
    for number in 0..20 {
        assert_eq!(daemon.run_sh(&format!("echo {number}")).stdout(), number.to_string());
    }
    assert!(disk_usage(&daemon.state_dir().join("log")) > 0, "the directory was created again");
    assert_eq!(daemon.log().matches("log directory").count(), 1, "one warning");
}

/// A mounted tmpfs of limited size.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> SmallDisk {
        let dir = tempfile::tempdir().expect("create a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(dir.path());
        assert!(mount.status().expect("run mount").success());
        SmallDisk(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_ends_no_process_and_keeps_the_last_64_kib() {
    if skip_without_root() {
        return;
    }
    for size in [300 << 10, 1 << 20] {
        check_a_full_disk(size);
    }
}

fn check_a_full_disk(size: u64) {
    let disk = SmallDisk::mount(size);
    let log_dir = disk.0.path().join("log").display().to_string();
    let daemon = start_daemon_with(&["--log-dir", &log_dir]);
    const KEPT: usize = 64 << 10;
    let numbers: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    // Output in large and in small writes, each twice: data of the first round stays on the disk.
    let echoes = "i=100000; while [ $i -lt 130000 ]; do echo $i; i=$((i + 1)); done";
    let echoed: String = (100_000..130_000).map(|number| format!("{number}\n")).collect();
    for (script, all) in [("seq 1 200000", &numbers), (echoes, &echoed), ("seq 1 200000", &numbers), (echoes, &echoed)]
    {
        let pid = daemon.sh(script);
        assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0, "a full disk ends no process");
        let raw = daemon.raw_output(pid, "stdout");
        assert!(raw.len() >= KEPT, "{script}: {} bytes are kept", raw.len());
        let last = raw.split_at(raw.len() - KEPT).1;
        assert!(all.as_bytes().ends_with(last), "{script}: the last bytes are not those that are kept");
        let response = daemon.get(&format!("/processes/{pid}/stdout")).expect(200);
        let lines = response["lines"].as_array().expect("lines");
        let whole =
            |line: &Value| line.as_str().is_some_and(|line| line.parse::<u32>().is_ok_and(|n| n > 0 && n <= 200_000));
        assert!(lines.iter().all(whole), "{script}");
        assert!(all.len() == raw.len() || response["truncated"] == true, "{script}");
    }
}

/// Total size of all files below a directory, in bytes.
fn disk_usage(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("the log directory").flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => disk_usage(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn log_total_truncates_the_oldest_ended_logs_first() {
    let limit = 8 * MIB;
    let daemon = start_daemon_with(&["--log-total", &limit.to_string()]);
    let live = daemon.start_process(&json!({"command": "sh", "args": ["-c", "echo live; sleep 4951"]}));
    daemon.wait_for_stdout(pid_of(&live), &["live"]);
    let runs: Vec<u64> = (0..8)
        .map(|_| {
            let pid = daemon.sh("head -c 2097152 /dev/zero | tr '\\0' '\\n'");
            daemon.wait_for_end(pid);
            pid
        })
        .collect();
    let disk = disk_usage(&daemon.state_dir().join("log"));
    assert!(disk <= limit + 2 * MIB, "{disk} bytes on disk");
    // The newest log is complete, the oldest is truncated, and that of the live process is complete.
    assert_eq!(daemon.raw_output(runs[7], "stdout").len() as u64, 2 * MIB);
    let oldest = daemon.get(&format!("/processes/{}/stdout?tail=1", runs[0])).expect(200);
    assert_eq!(oldest["truncated"], true);
    assert_eq!(daemon.lines(pid_of(&live), "stdout"), ["live"]);
}

#[test]
fn max_processes_refuses_further_starts_with_429() {
    let daemon = start_daemon_with(&["--max-processes", "3"]);
    let pids: Vec<u64> = (0..3).map(|_| daemon.sh("sleep 4952")).collect();
    for path in ["/processes", "/processes/run"] {
        let refused = daemon.post(path, &json!({"command": "true"}));
        refused.expect_error(429, "TOO_MANY_PROCESSES", "3");
    }
    assert_eq!(daemon.list().len(), 3, "a refused start leaves no entry");
    daemon.delete(&format!("/processes/{}", pids[0])).expect(204);
    assert_eq!(daemon.run_sh("echo x").stdout(), "x");
    let _: Vec<Value> = daemon.list();
}

/// Resource limits set for the daemon are meant for its children: they must neither end nor restrict the daemon.
#[test]
fn inherited_resource_limits_apply_to_children_and_not_to_the_daemon() {
    let limits = [
        ("nofile", 500, "Max open files", "-Sn", 500),
        ("as", 1 << 30, "Max address space", "-Sv", 1 << 20),
        ("data", 1 << 29, "Max data size", "-Sd", 1 << 19),
        ("fsize", MIB, "Max file size", "-Sf", MIB / 512),
        ("cpu", 1_000, "Max cpu time", "-St", 1_000),
    ];
    let options = limits.iter().fold(Options::default(), |options, (name, soft, ..)| options.soft_limit(name, *soft));
    // The first log directory cannot be created, so the supervisor starts twice.
    let daemon = options.args(&["--log-dir", "/proc/no/such"]).start();
    let own = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid)).expect("its limits");
    for (_, soft, name, option, shown) in limits {
        let line = own.lines().find(|line| line.starts_with(name)).expect("the limit");
        let mut values = line[name.len()..].split_whitespace();
        let (raised, hard) = (values.next().expect("the soft limit"), values.next().expect("the hard limit"));
        assert_eq!(raised, hard, "{line}");
        assert_ne!(raised, soft.to_string(), "{line}");
        let run = daemon.run(&json!({"command": "sh", "args": ["-c", format!("ulimit {option}")]}));
        assert_eq!(run.stdout(), shown.to_string(), "{name}");
    }
    let long = daemon.sh("head -c 4194304 /dev/zero | tr '\\0' '\\n'");
    assert_eq!(daemon.wait_for_end(long)["exit_code"], 0);
    assert_eq!(daemon.raw_output(long, "stdout").len(), 4 << 20);
    assert!(daemon.get(&format!("/processes/{long}/stdout?tail=1")).expect(200).get("truncated").is_none());
}

/// A background child keeps a pipe and the log of its ended command open; these descriptors count for processes.
#[test]
fn descriptors_held_by_ended_processes_do_not_take_the_share_of_connections() {
    const ALL: u64 = 400;
    const CONNECTIONS: usize = 50;
    const STREAMS: usize = 43;
    let args = ["--max-processes", "20", "--max-connections", "50"];
    let daemon = Options::default().max_descriptors(ALL).args(&args).start();
    let live = daemon.sh("echo up; exec sleep 4961");
    // Each command leaves a child that has written a line and holds one pipe.
    let script = "(echo x; exec sleep 4960) 2>/dev/null & exit";
    let body = json!({"command": "sh", "args": ["-c", script]});
    let mut started = Vec::new();
    loop {
        let response = daemon.post("/processes", &body);
        if response.status != 201 {
            response.expect_error(503, "OUT_OF_RESOURCES", "descriptors");
            break;
        }
        let pid = pid_of(&response.json());
        daemon.wait_for_end(pid);
        daemon.wait_for_stdout(pid, &["x"]);
        started.push(pid);
        assert!(started.len() < ALL as usize, "no start is refused");
    }
    assert!(started.len() > 50, "{} processes", started.len());
    // As many streams and idle connections at once as the limit allows, less one connection for the requests of the
    // test.
    let halves: Vec<_> = (STREAMS + 1..CONNECTIONS).map(|_| daemon.connect()).collect();
    let streams: Vec<_> = (0..STREAMS)
        .map(|number| {
            let mut stream = daemon.follow(live, "output");
            assert_eq!(stream.next_frame().expect("a frame").data["line"], "up", "stream {number}");
            stream
        })
        .collect();
    assert_eq!(daemon.try_health(), Some(200));
    let held = procfs::descriptors(daemon.pid).len();
    assert!(held + streams.len() < ALL as usize, "{held} descriptors");
    drop(halves);
    // Their descriptors are released when they end.
    for pid in &started {
        daemon.delete(&format!("/processes/{pid}")).expect(204);
    }
    wait_until(TIMEOUT, "a process can be started again", || {
        (daemon.post("/processes", &json!({"command": "true"})).status == 201).then_some(())
    });
}
