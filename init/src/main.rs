//! `tl-init`: PID 1 of a sandbox. It runs the supervisor and serves its API.

// Rust's own start-up code ends the process if one of descriptors 0 to 2 is closed and /dev/null does not exist, as in
// an initramfs without /dev. Without that code, this program can open them itself.
#![cfg_attr(not(test), no_main)]
#![forbid(unsafe_code)]

mod args;
mod boot;
mod config;
mod console;
mod create_user;
mod ctl;
mod event;
mod exit_status;
mod files;
// Not `any(test, fuzzing)`: the fuzz target contains the file itself.
#[cfg(test)]
mod invariants;
mod logger;
mod main_process;
mod mounts;
mod options;
mod poweroff;
mod report;
mod role;
mod run;
mod seed;
mod services;
mod signals;
mod start;
mod system;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::panic::catch_unwind;
use std::time::Instant;

use args::{Invocation, RawConfig};
use logger::Escaped;
use poweroff::Ending;
use report::Report;
use role::Role;
use tl_os::{allocator, disposition};
use tl_supervisor::http::EndAction;

/// Keeps a reserve for small allocations: running out of memory must not end PID 1.
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

// In a build of the unit tests, the test harness provides `main`.
#[cfg(not(test))]
tl_os::entry_point!(main);

#[cfg_attr(test, allow(dead_code))]
fn main() -> u8 {
    let begun = Instant::now();
    if let Some(args) = ctl::arguments() {
        // A panic of the client must not end the processes of this host, as one of the daemon does.
        return catch_unwind(|| ctl::main(args)).unwrap_or(exit_status::FAILURE);
    }
    // The caller is C code, into which a panic must not unwind.
    let status = catch_unwind(|| start(begun));
    status.unwrap_or_else(|_| poweroff::after_panic(Role::find()))
}

/// Runs the program. Returns the exit status; on a machine it does not return.
fn start(begun: Instant) -> u8 {
    console::open();
    allocator::hold_reserve();
    let reset = disposition::reset();
    let report = Report::new(begun);
    if std::process::id() == 1 {
        report.step(mounts::PROC.target, || mounts::PROC.provide(Role::find(), &mut mounts::MountTable::default()));
    }
    let role = Role::find();
    if let Err(error) = reset {
        print_error(&format!("signals: {error}"));
    }
    // On a machine, the kernel passes those arguments of its command line that it does not use itself.
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (args, ignored) = if role == Role::Machine { (Vec::new(), args) } else { (args, Vec::new()) };
    let raw = match args::parse(args, std::env::vars_os()) {
        Ok(Invocation::Run(raw)) => raw,
        Ok(Invocation::Help(text)) => return print(&text),
        Ok(Invocation::Version) => return print(&format!("tl-init {}\n", env!("CARGO_PKG_VERSION"))),
        Err(error) if role == Role::Machine => {
            report.failed("configuration", &error);
            RawConfig::default()
        }
        Err(error) => return fail(&error),
    };
    if !ignored.is_empty() {
        report.failed("kernel arguments", &format!("ignored: {ignored:?}"));
    }
    match run::run(role, raw, report) {
        Ok(ending) => poweroff::finish(role, ending),
        // Does not happen on a machine. The action is a power-off, because there an exit of PID 1 is a kernel panic.
        Err(error) => poweroff::finish(role, Ending { action: EndAction::PowerOff, status: fail(&error) }),
    }
}

/// Prints to stdout. Returns the exit status.
fn print(text: &str) -> u8 {
    u8::from(io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_err())
}

/// Prints an error. Returns the exit status for it.
fn fail(error: &str) -> u8 {
    print_error(error);
    exit_status::FAILURE
}

/// Prints an error to stderr, for the time before the log is started. `eprintln!` would panic if stderr is closed.
fn print_error(error: &str) {
    // The name of a file can have control characters.
    let mut line = "tl-init: ".to_owned();
    let _ = Escaped(&mut line).write_str(error);
    line.push('\n');
    let _ = io::stderr().write_all(line.as_bytes());
}
