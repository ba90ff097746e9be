//! `tl-init`: the supervisor and its API as one program, PID 1 of a sandbox.

// Rust's own start ends the process where descriptors 0 to 2 are closed and there is no /dev/null: so it is in an
// initramfs without /dev. Ours opens them first.
#![cfg_attr(not(test), no_main)]
#![forbid(unsafe_code)]

mod args;
mod boot;
mod console;
mod files;
mod logger;
mod main_process;
mod mounts;
mod poweroff;
mod report;
mod role;
mod run;
mod seed;
mod services;
mod signals;
mod start;

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::catch_unwind;
use std::time::Instant;

use args::{Asked, Given};
use poweroff::Ending;
use report::Report;
use role::Role;
use tl_os::{allocator, disposition};
use tl_supervisor::http::EndAction;

/// Small allocations have a reserve: an end of memory must not be the end of PID 1.
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

// In a build of the unit tests, their harness has a `main` of its own.
#[cfg(not(test))]
tl_os::entry_point!(main);

#[cfg_attr(test, allow(dead_code))]
fn main() -> u8 {
    let begun = Instant::now();
    // A panic must not cross into C.
    let end = catch_unwind(|| start(begun));
    end.unwrap_or_else(|_| poweroff::after_panic(Role::find()))
}

/// Gives the exit status; on a machine it does not return.
fn start(begun: Instant) -> u8 {
    console::open();
    allocator::hold_reserve();
    let reset = disposition::reset();
    let report = Report::new(begun);
    if std::process::id() == 1 {
        report.step(mounts::PROC.target, || mounts::PROC.provide(Role::find()));
    }
    let place = Role::find();
    if let Err(error) = reset {
        complain(&format!("signals: {error}"));
    }
    // The kernel puts words of its own on the command line.
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (words, ignored) = if place == Role::Machine { (Vec::new(), words) } else { (words, Vec::new()) };
    let given = match args::parse(words, std::env::vars_os()) {
        Ok(Asked::Run(given)) => given,
        Ok(Asked::Help(text)) => return say(&text),
        Ok(Asked::Version) => return say(&format!("tl-init {}\n", env!("CARGO_PKG_VERSION"))),
        Err(error) if place == Role::Machine => {
            report.failed("configuration", &error);
            Given::default()
        }
        Err(error) => return fail(&error),
    };
    if !ignored.is_empty() {
        report.failed("kernel arguments", &format!("ignored: {ignored:?}"));
    }
    match run::run(place, given, report) {
        Ok(ending) => poweroff::finish(place, ending),
        // A machine has no other use for its power: an init that exits is a panic of the kernel.
        Err(error) => poweroff::finish(place, Ending { action: EndAction::PowerOff, code: fail(&error) }),
    }
}

fn say(text: &str) -> u8 {
    u8::from(io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_err())
}

fn fail(error: &str) -> u8 {
    complain(error);
    1
}

/// Before there is a log. `eprintln!` would panic where nobody hears it.
fn complain(error: &str) {
    let _ = writeln!(io::stderr(), "tl-init: {error}");
}
