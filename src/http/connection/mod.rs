//! A connection below HTTP: its socket, its entry in the table of all connections, and the memory that it may use.
//!
//! `server`, `message` and `ws` import this module, which imports none of them.

pub(crate) mod entry;
mod linger;
pub(crate) mod memory;
pub(crate) mod socket;
pub(crate) mod table;
pub(crate) mod wait;
