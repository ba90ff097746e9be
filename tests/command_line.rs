//! The command line, its equivalents in the environment, and the files that a start creates.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Options, TIMEOUT, TOKEN, bound_command, is_root, start_daemon, start_daemon_with, wait_until};

/// Runs tl-init with arguments that do not start a daemon, until it exits. The log level is `error`, to hide log lines
/// that precede the error, such as lowered limits.
fn run_to_exit(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = bound_command(env!("CARGO_BIN_EXE_tl-init"));
    command.args(args).envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !args.contains(&"--log-level") && !env.iter().any(|(key, _)| *key == "TL_INIT_LOG_LEVEL") {
        command.env("TL_INIT_LOG_LEVEL", "error");
    }
    command.env("TL_INIT_RUN_DIR", dir.join("run")).env("TL_INIT_LOG_DIR", dir.join("log"));
    let mut child = command.spawn().expect("start the program");
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until(TIMEOUT, &format!("it ends with {args:?} {env:?}"), || child.try_wait().expect("wait"))
    }));
    if ended.is_err() {
        let _ = child.kill();
    }
    child.wait_with_output().expect("its output")
}

#[test]
fn an_invalid_option_exits_with_1_and_one_line_that_names_it() {
    let dir = tempfile::tempdir().expect("create a directory");
    let file = |name: &str, mode: u32, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write the file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set the mode");
        path.to_str().expect("a path").to_owned()
    };
    let good = file("good", 0o600, TOKEN);
    let open = file("open", 0o644, TOKEN);
    let group = file("group", 0o640, TOKEN);
    let empty = file("empty", 0o600, "\n");
    let spaced = file("spaced", 0o600, "A=1\nA B=2\n");
    let nameless = file("nameless", 0o600, "# one\n\n=2\n");
    let missing = dir.path().join("missing").to_str().expect("a path").to_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let taken = taken.local_addr().expect("local address").to_string();
    let at = ["--listen", "127.0.0.1:0"];
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["--no-such-option"], "--no-such-option"),
        (vec!["-x"], "-x"),
        (vec!["stray"], "stray"),
        (vec!["--listen"], "--listen"),
        (vec!["--listen", "nonsense"], "nonsense"),
        (vec!["--listen", "127.0.0.1:99999"], "127.0.0.1:99999"),
        (vec!["--listen", &taken], &taken),
        (vec!["--token-file", &missing], &missing),
        (vec!["--token-file", "no\nsuch\u{1b}[31m file"], "no\\nsuch\\u{1b}[31m file"),
        (vec!["--token-file", &open], &open),
        (vec!["--token-file", &group], &group),
        (vec!["--token-file", &empty], &empty),
        (vec!["--token-file", "/"], "/"),
        (vec!["--token-file", &good, "--no-auth"], "--no-auth"),
        (vec!["--default-user", ""], "--default-user"),
        (vec!["--default-user", "1:2:3"], "--default-user"),
        (vec!["--cors-origin", "*"], "--cors-origin"),
        (vec!["--cors-origin", "http://localhost:3000", "--cors-origin", "null"], "null"),
        (vec!["--cors-origin", "https://app.example/"], "https://app.example/"),
        (vec!["--create-user", "tl-user"], "--create-user"),
        (vec!["--create-user", "Tl User:1000"], "Tl User:1000"),
        (vec!["--create-user", "tl-user:0"], "UID from 1"),
        (vec!["--env-file", &missing], &missing),
        (vec!["--env-file", &spaced], "line 2"),
        (vec!["--env-file", &nameless], "line 3"),
        (vec!["--log-dir", "/proc/nowhere"], "/proc/nowhere"),
        (vec!["--log-dir", ""], "--log-dir"),
        (vec!["--run-dir", "/proc/nowhere"], "/proc/nowhere"),
        (vec!["--run-dir", ""], "--run-dir"),
        (vec!["--config-dir", ""], "--config-dir"),
        (vec!["--log-level", "loud"], "loud"),
        (vec!["--log-format", "xml"], "xml"),
        (vec!["--shutdown-grace", "-1"], "--shutdown-grace"),
        (vec!["--shutdown-grace", "soon"], "soon"),
        (vec!["--keep-ended", "x"], "--keep-ended"),
        (vec!["--max-processes", "-5"], "--max-processes"),
        (vec!["--max-body", "1e9"], "--max-body"),
        (vec!["--max-head", ""], "--max-head"),
        (vec!["--head-secs", "x"], "--head-secs"),
        (vec!["--log-limit", "99999999999999999999999"], "--log-limit"),
        (vec!["--log-total", "1T"], "--log-total"),
        (vec!["--command", "sleep 5"], "--command"),
        (vec!["--command", r#"[""]"#], "--command"),
        (vec!["--command", r#"["a\u0000b"]"#], "--command"),
        (vec!["--console-output=1"], "--console-output"),
        (vec!["--no-new-privs=1"], "--no-new-privs"),
        (vec!["--max-tasks", "0"], "--max-tasks"),
        (vec!["--default-limits", "256M"], "--default-limits"),
        (vec!["--default-limits", r#"{"cpus": 0}"#], "`cpus`: must be a number of CPUs of at least 0.01"),
        (vec!["--default-limits", r#"{"memory": 5}"#], "must not have"),
        (vec!["--metrics-per-process", "web,305"], "--metrics-per-process"),
        (vec!["--max-pty-sessions", "-1"], "--max-pty-sessions"),
        (vec!["--pty-idle-secs", "never"], "--pty-idle-secs"),
        (vec!["--max-connections", "0"], "--max-connections"),
        (vec!["--idle-secs", "99999999"], "--idle-secs"),
    ];
    let help = run_to_exit(dir.path(), &["--help"], &[]).stdout;
    let help = String::from_utf8(help).expect("text");
    for option in help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2) {
        let option = option.trim_end_matches([',', '.']);
        let is_tried = cases.iter().any(|(args, _)| args.iter().any(|arg| arg.split('=').next() == Some(option)));
        let has_none = ["--help", "--version"].contains(&option);
        assert!(is_tried || has_none, "no wrong value for {option} is tried");
    }
    for (args, needle) in cases {
        let mut line = args.clone();
        if !args.contains(&"--listen") {
            line.splice(0..0, at);
        }
        let output = run_to_exit(dir.path(), &line, &[]);
        check_one_error_line(&output, &format!("{args:?}"), needle);
    }
    for (key, value, needle) in [
        ("TL_INIT_LISTEN", "nonsense", "nonsense"),
        ("TL_INIT_MAX_PROCESSES", "many", "many"),
        ("TL_INIT_LOG_LEVEL", "loud", "loud"),
        ("TL_INIT_TOKEN_FILE", open.as_str(), open.as_str()),
    ] {
        let args = if key == "TL_INIT_LISTEN" { vec![] } else { at.to_vec() };
        let output = run_to_exit(dir.path(), &args, &[(key, value)]);
        check_one_error_line(&output, key, needle);
    }
}

fn check_one_error_line(output: &Output, what: &str, needle: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {} {stderr}", output.status);
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    assert!(stderr.contains(needle), "{what}: no {needle:?} in {stderr}");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
}

#[test]
fn help_and_version_are_printed() {
    let dir = tempfile::tempdir().expect("create a directory");
    let help = run_to_exit(dir.path(), &["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("--listen ADDR:PORT"));
    let version = run_to_exit(dir.path(), &["--version"], &[]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("tl-init {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn options_are_read_from_the_environment_and_the_command_line_overrides_them() {
    let env_file = tempfile::NamedTempFile::new().expect("create a file");
    std::fs::write(env_file.path(), "FROM_FILE=yes\n").expect("write the file");
    let daemon = Options::default()
        .env("TL_INIT_MAX_PROCESSES", "1")
        .env("TL_INIT_KEEP_ENDED", "2")
        .env("TL_INIT_MAX_BODY", "5000")
        .env("TL_INIT_ENV_FILE", env_file.path().to_str().expect("a path"))
        .env("TL_INIT_LOG_FORMAT", "json")
        .env("TL_INIT_LOG_LEVEL", "info")
        .env("TL_INIT_NO_AUTH", "1")
        .start();
    for _ in 0..4 {
        assert_eq!(daemon.run_sh("echo $FROM_FILE").stdout(), "yes");
    }
    assert_eq!(daemon.list().len(), 2);
    daemon.sh("sleep 5000");
    daemon.post("/processes", &json!({"command": "true"})).expect_error(429, "TOO_MANY_PROCESSES", "1");
    daemon.post("/processes", &json!({"command": "x".repeat(6000)})).expect_error(413, "BODY_TOO_LARGE", "5000");
    let log = daemon.log();
    let lines: Vec<&str> = log.lines().collect();
    assert!(!lines.is_empty());
    for line in lines {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    }
    // The command line overrides the environment.
    let daemon = Options::default().env("TL_INIT_KEEP_ENDED", "2").args(&["--keep-ended", "4"]).start();
    for _ in 0..6 {
        daemon.run_sh("true");
    }
    assert_eq!(daemon.list().len(), 4);
}

#[test]
fn the_token_is_readable_by_its_owner_only_and_appears_nowhere_else() {
    let daemon = start_daemon();
    let mode = |path: &str| {
        let data = std::fs::metadata(daemon.state_dir().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        data.permissions().mode() & 0o7777
    };
    assert_eq!(mode("run/token"), 0o600);
    assert_eq!(mode("log"), 0o700);
    daemon.run_sh("echo secret");
    let environ = std::fs::read(format!("/proc/{}/environ", daemon.pid)).expect("its environment");
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", daemon.pid)).expect("its command line");
    for place in [environ, cmdline, daemon.log().into_bytes()] {
        assert!(!place.windows(daemon.token.len()).any(|window| window == daemon.token.as_bytes()));
    }
    let token = daemon.state_dir().join("run/token");
    let run = daemon.run(&json!({"command": "cat", "args": [token]}));
    if is_root() {
        assert_ne!(run.code(), Some(0), "another user cannot read the token");
    }
}

#[test]
fn token_file_sets_the_token() {
    let dir = tempfile::tempdir().expect("create a directory");
    let path = dir.path().join("token");
    std::fs::write(&path, format!("{TOKEN}\n")).expect("write the file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).expect("set the mode");
    let daemon = start_daemon_with(&["--token-file", path.to_str().expect("a path")]);
    assert_eq!(daemon.token, TOKEN);
    assert_eq!(daemon.run_sh("echo x").stdout(), "x");
}

#[test]
fn a_second_daemon_refuses_a_log_directory_in_use() {
    let daemon = Options::subreaper().start();
    let log = daemon.state_dir().join("log");
    let dir = tempfile::tempdir().expect("create a directory");
    let args = ["--listen", "127.0.0.1:0", "--log-dir", log.to_str().expect("a path")];
    check_one_error_line(&run_to_exit(dir.path(), &args, &[]), "a second daemon", log.to_str().expect("a path"));
    assert_eq!(daemon.run_sh("echo x").stdout(), "x");
}

#[test]
fn the_main_process_runs_beside_the_api_with_the_output_of_the_daemon() {
    let daemon = Options::default().args(&["--", "sh", "-c", "echo from the command; exec sleep 5001"]).start();
    wait_until(TIMEOUT, "the process runs", || (!daemon.pids_matching("sleep 5001").is_empty()).then_some(()));
    // Its output goes to the stdout of the daemon.
    wait_until(TIMEOUT, "its output is in the log", || daemon.log().contains("from the command").then_some(()));
    assert_eq!(daemon.run_sh("echo x").stdout(), "x");
}

#[test]
fn the_daemon_ends_with_the_exit_code_of_its_main_process() {
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137)] {
        let script = format!("read x <go; {script}");
        let scratch = tempfile::tempdir().expect("create a directory");
        let go = scratch.path().join("go");
        nix::unistd::mkfifo(&go, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("create a FIFO");
        let script = script.replace("go;", &format!("{};", go.display()));
        let uid = nix::unistd::geteuid().to_string();
        let mut daemon = Options::default().args(&["--default-user", &uid, "--", "sh", "-c", &script]).start();
        daemon.sh("sleep 5002");
        std::fs::write(&go, "go\n").expect("release the process");
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(code));
    }
}

#[test]
fn signals_without_a_meaning_are_ignored() {
    let daemon = start_daemon();
    for signal in [Signal::SIGPIPE, Signal::SIGCHLD, Signal::SIGURG, Signal::SIGWINCH, Signal::SIGCONT] {
        daemon.signal(signal);
    }
    assert_eq!(daemon.run_sh("echo x").stdout(), "x");
}

#[test]
fn a_failed_write_to_stdout_or_stderr_exits_with_1_without_a_panic() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full disk");
    for args in [&["--help"][..], &["--version"]] {
        let out =
            Command::new(env!("CARGO_BIN_EXE_tl-init")).args(args).stdout(full()).output().expect("run the program");
        assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(1), ""), "{args:?}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_tl-init"));
    assert_eq!(command.arg("--nonsense").stderr(full()).status().expect("run the program").code(), Some(1));
}
