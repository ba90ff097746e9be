//! A randomised soak with an invariant checker: clients start, run, follow, write, signal, kill, restart, resize, upload,
//! download, tunnel and attach at random, under faults; all the time, what the daemon says is compared with a model.
//!
//! A round is a number of operations of each client. What a client does depends on the seed, the round and its own model
//! only, because clients own disjoint processes and files. At the end of a round all clients pause, then end everything
//! that they have; each time the whole daemon is checked. `allowed.rs` says what a fault may take away.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs, dead_code)]

#[path = "../harness/mod.rs"]
#[allow(unused_imports)]
mod harness;

mod allowed;
mod checker;
mod client;
mod faults;
mod lines;
mod model;
mod operations;
mod options;
mod report;
mod rounds;
mod tally;
mod verify;
mod worker;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicU64;

use client::Shared;
use options::Options;

/// Where the daemon has a small disk for its logs. `/home` is its own: nothing of this is left on the machine.
const DISK: &str = "/home/soak";

const MOUNT: &str = "mkdir /home/soak; mount -t tmpfs -o size=64m,mode=1777 soak /home/soak; \
    export TL_INIT_LOG_DIR=/home/soak/log";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().is_some_and(|first| first == "worker") {
        worker::main(&args.collect::<Vec<_>>());
    }
    let Some(options) = Options::parse(std::env::args().skip(1)) else { return ExitCode::SUCCESS };
    if harness::skip_without_root() {
        return ExitCode::SUCCESS;
    }
    println!("soak: seed {}, {options:?}", options.seed);
    let shared = start(&options);
    if rounds::run(&shared, &options) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The user of the processes. One of its own, because the kernel counts the processes of a user on the whole machine
/// (RLIMIT_NPROC): a fork bomb of `tl-user` in another test would keep the soak from starting any.
const USER: &str = "61743:61743";

/// Starts the daemon with a small log disk and few PIDs.
fn start(options: &Options) -> Shared {
    let keep = allowed::KEEP_ENDED.to_string();
    // With `debug`, the log names each end of each process, which explains a violation.
    let level = std::env::var("TL_TEST_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
    let args = ["--default-user", USER, "--keep-ended", &keep, "--log-total", "48M", "--log-level", &level];
    let options_of_daemon = harness::Options::default().args(&args).prepare(MOUNT).pid_max(allowed::PID_MAX as u32);
    let daemon = options_of_daemon.start();
    let scratch = daemon.scratch();
    let progress = scratch.join("progress");
    fs::create_dir(&progress).expect("create a directory");
    fs::set_permissions(&progress, fs::Permissions::from_mode(0o755)).expect("let all users enter it");
    Shared {
        program: copy_program(&scratch),
        progress,
        disk: PathBuf::from(format!("/proc/{}/root{DISK}", daemon.pid)),
        disk_inside: DISK.into(),
        echo_port: harness::tcp_service(operations::tunnels::serve),
        seed: options.seed,
        clients: options.clients,
        last_pid: AtomicU64::new(0),
        faults: allowed::Faults::default(),
        tally: tally::Tally::default(),
        daemon,
    }
}

/// A copy of this program that every user can execute.
fn copy_program(scratch: &Path) -> PathBuf {
    let copy = scratch.join("soak");
    let own = std::env::current_exe().expect("the path of this program");
    // Another process writes it: a child that is forked meanwhile would inherit a file that is open for writing.
    assert!(Command::new("cp").arg(own).arg(&copy).status().expect("run cp").success(), "copy the program");
    copy
}
