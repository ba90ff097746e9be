//! Test harness: starts the real daemon, as PID 1 of a new PID namespace by default, and ends it with the test.
//!
//! No helper sleeps for a fixed time to wait for the daemon: a test waits for a condition, with a deadline.

pub mod baseline;
pub mod cgroups;
pub mod client;
pub mod daemon;
pub mod faults;
pub mod files;
pub mod need;
pub mod openapi;
pub mod options;
pub mod procfs;
pub mod response;
pub mod websocket;

use std::ffi::OsStr;
use std::fmt::Display;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

pub use daemon::Daemon;
pub use need::{is_root, skip, skip_without_root};
pub use options::{Options, start_daemon, start_daemon_with};
pub use response::Response;

/// Deadline for anything that a test waits for; long enough for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Token that tests give to the daemon with `--token-file`.
pub const TOKEN: &str = "a-token-of-the-tests";

/// Closes a connection with a reset instead of an orderly end.
pub fn reset(socket: TcpStream) {
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("set the option");
}

/// Calls `condition` until it returns a value; fails with the description `what` at the deadline.
pub fn wait_until<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    wait_until_ok(deadline, || condition().ok_or(what))
}

/// Calls `condition` until it returns a value; fails with its error at the deadline.
pub fn wait_until_ok<T, E: Display>(deadline: Duration, mut condition: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < end, "not within {deadline:?}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `value` has not changed for `period`, and returns it. Fails with the description `what` if it keeps
/// changing.
pub fn wait_until_still<T: PartialEq>(period: Duration, what: &str, mut value: impl FnMut() -> T) -> T {
    let mut before = value();
    wait_until(TIMEOUT, what, || {
        std::thread::sleep(period);
        let now = value();
        if now == before {
            return Some(now);
        }
        before = now;
        None
    })
}

/// Calls `job` `count` times and checks its times with [`check_times`].
pub fn check_most_take_less(limit: Duration, count: usize, mut job: impl FnMut()) {
    let time = || {
        let begun = Instant::now();
        job();
        begun.elapsed()
    };
    check_times(limit, std::iter::repeat_with(time).take(count).collect());
}

/// Checks that most times are less than `limit`, and none is ten times as long. On a busy machine, threads may be
/// suspended for longer than `limit` at any time, but not in most cases.
pub fn check_times(limit: Duration, mut times: Vec<Duration>) {
    times.sort();
    assert!(times[times.len() / 2] < limit && times[times.len() - 1] < 10 * limit, "{times:?}");
}

/// The field `pid` of a ProcessInfo or of the first event of a run.
pub fn pid_of(info: &Value) -> u64 {
    info["pid"].as_u64().unwrap_or_else(|| panic!("no pid in {info}"))
}

/// A port that refuses connections for as long as the returned connection, which occupies it, is kept.
pub fn reserve_closed_port() -> (u16, [TcpStream; 2]) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let client = TcpStream::connect(listener.local_addr().expect("local address")).expect("connect");
    let server = listener.accept().expect("accept the connection").0;
    (client.local_addr().expect("local address").port(), [client, server])
}

/// Starts a TCP service on a free port of 127.0.0.1; one thread per connection calls `serve`. Returns the port.
pub fn tcp_service(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let port = listener.local_addr().expect("local address").port();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

/// A command that gets SIGTERM when the thread that starts it ends, so that a failed test leaves no process behind.
///
/// SIGHUP, SIGINT and SIGQUIT get their default action, which they lack when the tests run under `nohup` or in the
/// background of a shell script.
pub fn bound_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT", "setpriv", "--pdeathsig", "TERM"]).arg(program);
    command
}

/// Pseudo-random numbers: Marsaglia's xorshift, started from a seed other than 0.
pub struct Random(pub u64);

impl Random {
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number from 0 to `bound - 1`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}
