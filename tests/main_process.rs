//! The main process of a container: the behavior that users of `docker run --init` know from tini, and extensions.
//!
//! | promise in the README of tini | tested here by |
//! |---|---|
//! | it runs one child and ends with its exit code | `the_container_ends_with_the_exit_code_or_128_plus_the_signal` |
//! | after a death by signal, 128 + signal | `the_container_ends_with_the_exit_code_or_128_plus_the_signal`, `an_unhandled_sigterm_or_sigint_ends_the_main_process` |
//! | 127 or 126 if it does not start | `a_main_process_that_cannot_start_ends_the_container_with_127_or_126` |
//! | signals are forwarded | `signals_are_forwarded_to_the_main_process` |
//! | `-g`: to the group of the child | always: `forwarded_signals_reach_the_whole_process_group` |
//! | zombies are reaped | `orphans_are_reaped_beside_the_main_process` |
//! | `-s`: as a subreaper too | always, if it is not PID 1: `a_main_process_works_under_a_subreaper` |
//! | the child begins with no signal blocked or ignored | `the_main_process_starts_with_clean_signals_and_the_environment_of_the_container` |
//! | the child is in the foreground of the terminal | `the_terminal_of_the_container_is_controlled_by_the_main_process` |
//! | a stopped child has not ended | `a_stopped_main_process_counts_as_running` |
//! | remaining processes end with the child | after a SIGTERM: `remaining_processes_get_sigterm_after_the_main_process_has_ended` |
//! | `-e`, `-p`, `-v`, `-w` | there are no such options |
//!
//! tini forwards SIGPIPE, tl-init does not: it is caused by a broken pipe, never sent on purpose.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Daemon, Options, TIMEOUT, procfs, skip_without_root, wait_until};

/// A daemon whose main process is a shell script, run as the user of the test.
struct Main {
    daemon: Daemon,
    _scratch: TempDir,
    said: std::path::PathBuf,
}

impl Main {
    /// Starts the daemon and waits for the line `up` in the file `$SAID`, which the script must write.
    fn start(script: &str) -> Main {
        Main::start_with(Options::default(), script)
    }

    fn start_with(options: Options, script: &str) -> Main {
        let scratch = tempfile::tempdir().expect("create a directory");
        let said = scratch.path().join("said");
        let uid = nix::unistd::geteuid().to_string();
        let args = ["--default-user", &uid, "--shutdown-grace", "3600", "--", "sh", "-c", script];
        let options = options.args(&args).env("SAID", said.to_str().expect("a path"));
        let main = Main { daemon: options.start(), _scratch: scratch, said };
        main.wait_for_line("up");
        main
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default()
    }

    fn wait_for_line(&self, word: &str) {
        wait_until(TIMEOUT, &format!("$SAID has the line {word:?}"), || {
            self.output().lines().any(|line| line == word).then_some(())
        });
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.daemon.wait_for_exit(TIMEOUT).code()
    }
}

/// Writes `up`, then the number of each signal it gets; exits with 7 after signal 64.
const WRITE_SIGNAL_NUMBERS: &str = "for signal in 1 2 3 10 12 15 20 28 30 34 37 38 39 47 48 49 64; do
        trap \"echo $signal >>$SAID\" $signal
    done
    echo up >>$SAID
    until grep -qx 64 $SAID; do sleep 0.02; done
    exit 7";

#[test]
fn signals_are_forwarded_to_the_main_process() {
    let mut main = Main::start(WRITE_SIGNAL_NUMBERS);
    for signal in [1, 3, 10, 12, 20, 28, 30, 34, 37, 38, 39, 47, 48, 49, 15] {
        main.daemon.signal_number(signal);
        main.wait_for_line(&signal.to_string());
    }
    main.daemon.signal_number(64);
    assert_eq!(main.exit_code(), Some(7));
}

#[test]
fn forwarded_signals_reach_the_whole_process_group() {
    let mut main = Main::start(
        "trap 'echo leader >>$SAID; wait; exit 5' TERM
         sh -c 'trap \"echo child >>$SAID; exit\" TERM; echo up >>$SAID; while :; do sleep 0.02; done' &
         wait",
    );
    main.daemon.signal(Signal::SIGTERM);
    assert_eq!(main.exit_code(), Some(5));
    let said = main.output();
    assert!(said.contains("child") && said.contains("leader"), "{said}");
}

#[test]
fn the_container_ends_with_the_exit_code_or_128_plus_the_signal() {
    for (end, code) in
        [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)]
    {
        let mut main = Main::start(&format!("echo up >>$SAID; until [ -e $SAID.go ]; do sleep 0.02; done; {end}"));
        std::fs::write(format!("{}.go", main.said.display()), "").expect("release the process");
        assert_eq!(main.exit_code(), Some(code), "{end}");
    }
}

#[test]
fn an_unhandled_sigterm_or_sigint_ends_the_main_process() {
    let mut main = Main::start("echo up >>$SAID; exec sleep 600");
    main.daemon.signal(Signal::SIGTERM);
    assert_eq!(main.exit_code(), Some(143));
    let mut main = Main::start("echo up >>$SAID; exec sleep 600");
    main.daemon.signal(Signal::SIGINT);
    assert_eq!(main.exit_code(), Some(130));
}

#[test]
fn a_second_sigterm_ends_the_grace() {
    let mut main = Main::start("trap 'echo asked >>$SAID' TERM; echo up >>$SAID; while :; do sleep 0.02; done");
    main.daemon.signal(Signal::SIGTERM);
    main.wait_for_line("asked");
    main.daemon.signal(Signal::SIGTERM);
    assert_eq!(main.exit_code(), Some(137), "the grace would be an hour");
}

#[test]
fn remaining_processes_get_sigterm_after_the_main_process_has_ended() {
    let mut main = Main::start(
        "setsid sh -c 'trap \"echo asked too >>$SAID; exit\" TERM; echo up >>$SAID; while :; do sleep 0.02; done' &
         until grep -qx up $SAID; do sleep 0.02; done
         until [ -e $SAID.go ]; do sleep 0.02; done; exit 3",
    );
    std::fs::write(format!("{}.go", main.said.display()), "").expect("release the process");
    assert_eq!(main.exit_code(), Some(3));
    assert!(main.output().contains("asked too"), "{}", main.output());
}

#[test]
fn orphans_are_reaped_beside_the_main_process() {
    let main = Main::start("(setsid sleep 0.1 &) ; (setsid sleep 0.2 &); echo up >>$SAID; exec sleep 600");
    wait_until(TIMEOUT, "the main process is the only child of PID 1", || {
        (procfs::children(main.daemon.pid).len() == 1).then_some(())
    });
    assert!(procfs::descendants(main.daemon.pid).into_iter().all(|pid| !procfs::is_zombie(pid)));
}

#[test]
fn a_main_process_works_under_a_subreaper() {
    let mut main = Main::start_with(
        Options::subreaper(),
        "(setsid sleep 0.1 &); trap 'exit 7' TERM; echo up >>$SAID; while :; do sleep 0.02; done",
    );
    wait_until(TIMEOUT, "the orphan was adopted and reaped", || {
        (procfs::children(main.daemon.pid).len() == 1).then_some(())
    });
    main.daemon.signal(Signal::SIGTERM);
    assert_eq!(main.exit_code(), Some(7));
}

#[test]
fn a_stopped_main_process_counts_as_running() {
    let mut main = Main::start("trap 'exit 7' TERM; echo up >>$SAID; kill -STOP $$; while :; do sleep 0.02; done");
    let pid = main.daemon.list()[0]["pid"].clone();
    wait_until(TIMEOUT, "the process is stopped", || {
        let state = main.daemon.run_sh(&format!("cut -d ' ' -f 3 /proc/{pid}/stat"));
        (state.stdout() == "T").then_some(())
    });
    assert_eq!(main.daemon.list()[0]["status"], "running");
    main.daemon.signal(Signal::SIGCONT);
    main.daemon.signal(Signal::SIGTERM);
    assert_eq!(main.exit_code(), Some(7));
}

#[test]
fn the_main_process_starts_with_clean_signals_and_the_environment_of_the_container() {
    let options = Options::default().env("GREETING", "hello").env("TL_INIT_KEEP_ENDED", "5").env("HOME", "/nowhere");
    let main = Main::start_with(
        options,
        "grep -E '^Sig(Blk|Ign)' /proc/self/status >>$SAID
         echo $GREETING $(env | grep -c TL_INIT_) $PWD >>$SAID
         test \"$HOME\" != /nowhere && echo home of its user >>$SAID
         echo up >>$SAID; exec sleep 600",
    );
    let said = main.output();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "hello 0 /", "home of its user", "up"]
    );
    // Processes started over the API do not get this environment.
    assert_eq!(main.daemon.run_sh("echo $GREETING").stdout(), "");
}

#[test]
fn the_main_process_inherits_the_standard_streams_of_the_daemon() {
    let main = Main::start(
        "read line; echo got $? >>$SAID; echo to stdout; echo to stderr >&2; echo up >>$SAID; exec sleep 600",
    );
    assert!(main.output().contains("got 1"), "stdin is /dev/null in these tests");
    wait_until(TIMEOUT, "both lines are in the log", || {
        let log = main.daemon.log();
        (log.contains("to stdout") && log.contains("to stderr")).then_some(())
    });
}

#[test]
fn a_main_process_that_cannot_start_ends_the_container_with_127_or_126() {
    for (program, code) in [("/nowhere/at-all", 127), ("no-such-program", 127), ("/etc/passwd", 126), ("/", 126)] {
        let scratch = tempfile::tempdir().expect("create a directory");
        let out = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/namespace.sh"))
            .args([env!("CARGO_BIN_EXE_tl-init"), "--listen", "127.0.0.1:0", "--", program])
            .env("TL_NS_DIR", scratch.path().join("state"))
            // A PATH without directories that the user may not enter, which would change the error.
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .output()
            .expect("run the program");
        assert_eq!(out.status.code(), Some(code), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(String::from_utf8_lossy(&out.stderr).contains(program), "the error names the program");
    }
}

#[test]
fn tl_init_command_sets_the_main_process_as_json() {
    let daemon = Options::default().env("TL_INIT_COMMAND", r#"["sleep", "5611"]"#).start();
    daemon.wait_for_processes("sleep 5611", 1);
    let list = daemon.list();
    assert_eq!((&list[0]["args"], &list[0]["managed"]), (&json!(["5611"]), &json!(null)));
}

#[test]
fn shutdown_over_the_api_ends_with_the_exit_code_of_the_main_process() {
    let mut main = Main::start("trap 'echo asked >>$SAID; exit 9' TERM; echo up >>$SAID; while :; do sleep 0.02; done");
    main.daemon.post("/shutdown", &json!({"action": "exit"})).expect(202);
    assert_eq!(main.exit_code(), Some(9));
}

/// As with `docker run -t`: the main process is in the foreground of the terminal and gets Ctrl-C and resizes.
#[test]
fn the_terminal_of_the_container_is_controlled_by_the_main_process() {
    if skip_without_root() {
        return;
    }
    let main = "trap 'echo interrupted >>$SAID; exit 8' INT; tty >>$SAID
                echo up >>$SAID; while :; do sleep 0.02; done";
    run_on_terminal("0", &["--", "sh", "-c", main], "");
    // The same with a main process from `init.conf`.
    run_on_terminal("0", &[], &format!("TL_INIT_COMMAND={}\n", json!(["sh", "-c", main])));
}

/// As with `runc`: the terminal belongs to the user of the main process and keeps its group.
#[test]
fn the_terminal_of_the_container_belongs_to_the_user_of_the_main_process() {
    if skip_without_root() {
        return;
    }
    let main = "trap 'echo interrupted >>$SAID; exit 8' INT; tty >>$SAID
                (echo reopened >/dev/stdout) && (: </dev/stdin) && echo can be opened again >>$SAID
                stat -c 'of %u' $(tty) >>$SAID; echo up >>$SAID; while :; do sleep 0.02; done";
    let said = run_on_terminal("4242:7", &["--", "sh", "-c", main], "");
    assert!(said.contains("\ncan be opened again\nof 4242\n"), "{said}");
}

fn run_on_terminal(user: &str, command: &[&str], conf: &str) -> String {
    let scratch = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir();
    let scratch = scratch.expect("create a directory");
    let said = scratch.path().join("said");
    std::fs::write(&said, "").expect("create the file");
    std::fs::set_permissions(&said, std::fs::Permissions::from_mode(0o666)).expect("make it accessible to all");
    std::fs::write(scratch.path().join("init.conf"), conf).expect("write init.conf");
    let mut child = Command::new("python3");
    child.args(["-c", include_str!("terminal.py")]);
    // PID 1 leads the session of the terminal, as in a container.
    child.args(["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "setsid", "--ctty"]);
    child.args([env!("CARGO_BIN_EXE_tl-init"), "--listen", "127.0.0.1:0", "--default-user", user]);
    child.arg("--run-dir").arg(scratch.path().join("run")).arg("--log-dir").arg(scratch.path().join("log"));
    child.arg("--config-dir").arg(scratch.path()).args(command).env("SAID", &said).current_dir("/");
    let out = child.output().expect("run the program");
    let said = read_output(&said);
    assert_eq!(out.status.code(), Some(8), "{said} {}", String::from_utf8_lossy(&out.stderr));
    assert!(said.starts_with("/dev/pts/") && said.ends_with("up\ninterrupted\n"), "{said}");
    said
}

fn read_output(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
