//! Connections: who is let in, and what is between the socket and a handler.

pub(in crate::http) mod acceptor;
pub(in crate::http) mod connection;
pub(in crate::http) mod connections;
pub(in crate::http) mod memory;
mod reserve;
pub(in crate::http) mod socket;
#[cfg(test)]
mod tests;
