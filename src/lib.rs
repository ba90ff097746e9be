//! Supervises processes: forks, reaps, restarts and kills them, and keeps every byte that they write.
//!
//! See `docs/design.md` for the threads and who owns what.

#![forbid(unsafe_code)]

mod clock;
pub mod error;
mod files;
mod health;
pub mod http;
pub mod logs;
pub mod model;
mod oom;
mod output;
mod parker;
pub mod pending;
pub mod supervisor;
pub mod terminal;
mod trees;
mod unit;
mod users;

pub use error::{Error, SpecError};
pub use model::*;
pub use supervisor::{Handle, Supervisor};
pub use terminal::session::SessionInfo;
