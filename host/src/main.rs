//! tl-host: makes sandboxes on this machine out of the containers of an OCI engine, with tl-init as their PID 1.
//!
//! | module | what |
//! |---|---|
//! | `engine` | the client of the Docker Engine API |
//! | `sandbox` | the sandboxes: their records on disk, and what can be done with them |
//! | `api` | the control plane: the HTTP endpoints of sandboxes and snapshots |
//! | `proxy` | the data plane: passes requests on to the sandboxes |
//! | `program` | the command line, and starting and stopping everything |
//! | `text` | shortens text |
//!
//! `engine` knows nothing of sandboxes. `proxy` sees the sandboxes through [`proxy::Directory`] only. `api` and `proxy`
//! know nothing of each other.
#![forbid(unsafe_code)]

mod api;
mod engine;
mod program;
mod proxy;
mod sandbox;
mod text;

use std::process::ExitCode;

fn main() -> ExitCode {
    program::main()
}
