//! The user that a process runs as, looked up in `/etc/passwd` and `/etc/group`.

mod cache;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod lookup;
mod passwd;

pub(crate) use lookup::{group, resolve};
pub(crate) use passwd::Identity;
