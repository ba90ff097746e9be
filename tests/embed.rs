//! Runs `examples/embed.rs` as a program of its own, and ends it with Ctrl-C.
//!
//! The example is compiled into this program, which has no test harness: it starts itself again and becomes the example
//! there. Cargo gives a test no path to the binary of an example, and to build it from here would build the library anew.

// The whole crate is a test, so it may panic.
#![allow(clippy::unwrap_used)]
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "../examples/embed.rs"]
mod example;

/// Set where this program is to be the example.
const BE_THE_EXAMPLE: &str = "TL_TEST_BE_THE_EXAMPLE";

fn main() {
    if std::env::var_os(BE_THE_EXAMPLE).is_some() {
        return example::main().unwrap();
    }
    embed_reacts_to_exits_and_ends_cleanly_at_ctrl_c();
    println!("test embed_reacts_to_exits_and_ends_cleanly_at_ctrl_c ... ok");
}

fn embed_reacts_to_exits_and_ends_cleanly_at_ctrl_c() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut embed = command.env(BE_THE_EXAMPLE, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(embed.stdout.take().unwrap());
    let mut lines = Vec::new();
    let (mut ticked, mut gave_up) = (false, false);
    while !(ticked && gave_up) {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "the example ended too early: {lines:?}");
        ticked |= line.starts_with("clock: ");
        gave_up |= line.starts_with("flaky has stopped: gave up after 2 restarts in a row");
        lines.push(line);
    }
    assert_eq!(lines.iter().filter(|line| *line == "flaky: trying\n").count(), 3, "{lines:?}");
    kill(Pid::from_raw(embed.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("everything has ended\n"), "{rest}");
    assert!(embed.wait().unwrap().success());
}
