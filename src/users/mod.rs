//! Users and groups: who a process runs as.

mod lookup;
mod passwd;

pub(crate) use lookup::{group, resolve};
pub(crate) use passwd::Identity;
