//! The process API: one file for each resource, and the table of routes.

mod about;
mod attach;
mod control;
mod events;
mod files;
mod output;
pub(in crate::http) mod processes;
mod pty;
pub(in crate::http) mod routes;
mod run;
pub(in crate::http) mod system;
mod tunnel;
