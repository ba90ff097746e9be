//! Runs `examples/embed.rs` as its user would, and ends it with Ctrl-C.

// The whole crate is a test, so it may panic.
#![allow(clippy::unwrap_used)]
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn embed_reacts_to_exits_and_ends_cleanly_at_ctrl_c() {
    let mut cargo = Command::new(env!("CARGO"));
    // `cargo run` replaces itself with the program, so that the signal reaches it.
    cargo.args(["run", "--quiet", "--package", "tl-supervisor", "--example", "embed"]);
    let mut embed = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::piped()).spawn().unwrap();
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
