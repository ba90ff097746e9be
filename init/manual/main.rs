//! Writes the manual pages and the shell completions of `tl-init`, `tlctl` and `tl-host`, from the tables that their
//! parsers use.
//! It is not part of the program, and imports only the standard library, so that `rustc` alone builds it:
//!
//! ```text
//! rustc --edition 2024 -o manual init/manual/main.rs && ./manual VERSION DIRECTORY
//! ```
//!
//! `make dist` does that. `tests/manual.rs` checks what it writes.

#![forbid(unsafe_code)]
#![allow(dead_code)]

mod bash;
mod fish;
mod host;
#[path = "../../host/src/program/options.rs"]
pub(crate) mod host_options;
#[path = "../src/options.rs"]
pub(crate) mod options;
mod pages;
mod roff;
#[path = "../src/ctl/table.rs"]
mod table;
mod zsh;

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

/// The files: paths below the directory, and contents.
fn files(version: &str) -> Vec<(&'static str, String)> {
    vec![
        ("man/tl-init.8", pages::tl_init(version)),
        ("man/tlctl.1", pages::tlctl(version)),
        ("man/init.conf.5", pages::init_conf(version)),
        ("completions/tlctl.bash", bash::script()),
        ("completions/_tlctl", zsh::script()),
        ("completions/tlctl.fish", fish::script()),
        // Not among the others, which belong to the package of tl-init.
        ("host/man/tl-host.8", host::page(version)),
        ("host/completions/tl-host.bash", host::bash()),
        ("host/completions/_tl-host", host::zsh()),
        ("host/completions/tl-host.fish", host::fish()),
    ]
}

pub(crate) fn write(version: &str, directory: &Path) -> io::Result<()> {
    for (path, text) in files(version) {
        let path = directory.join(path);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, text)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let [version, directory] = &args[..] else {
        eprintln!("usage: manual VERSION DIRECTORY");
        return ExitCode::from(2);
    };
    match write(version, Path::new(directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {directory}: {error}");
            ExitCode::FAILURE
        }
    }
}
