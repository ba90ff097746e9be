//! Supervises processes: forks, reaps, restarts and kills them, and keeps every byte that they write.
//!
//! See `docs/design.md` for the threads and who owns what.

#![forbid(unsafe_code)]
// Some functions have no caller but the HTTP API.
#![cfg_attr(not(feature = "http"), allow(dead_code, unused_imports))]

mod clock;
pub mod error;
#[cfg(feature = "http")]
mod files;
mod health;
#[cfg(feature = "http")]
pub mod http;
pub mod logs;
pub mod model;
mod oom;
mod output;
pub mod pending;
pub mod supervisor;
pub mod terminal;
mod trees;
mod unit;
mod users;

pub use error::{Error, SpecError};
pub use model::terminal_size::TerminalSize;
pub use model::*;
pub use supervisor::{Handle, Supervisor};
pub use terminal::session::SessionInfo;
