//! Supervises processes: forks, reaps, restarts and kills them, and keeps every byte that they write.
//!
//! See `docs/design.md` for the threads and who owns what.

mod budget;
pub mod error;
mod files;
mod fleet;
mod health;
pub mod http;
pub mod lines;
pub mod logs;
pub mod model;
mod oom;
pub mod os;
mod output;
pub mod pending;
mod retention;
mod ring;
mod schedule;
mod session;
pub mod signals;
pub mod supervisor;
mod tasks;
pub mod terminal;
mod trees;
mod unit;
mod users;
mod window;
pub mod worker;

pub use error::{Error, SpecError};
pub use model::*;
pub use session::SessionInfo;
pub use supervisor::{Handle, Supervisor};
pub use window::Window;
