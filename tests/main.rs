//! The real daemon, started as PID 1 of a namespace of its own (or beside the test, where that is the point),
//! and driven over its API.

// A test says what went wrong by failing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs)]

mod harness;

mod bad_input;
mod boot;
mod cgroups;
mod child;
mod churn;
mod command_line;
mod control;
mod crowded;
mod dead_disk;
mod ending;
mod files;
mod follow;
mod hanging;
mod health_checks;
mod hostile;
mod launcher;
mod limits;
mod main_process;
mod managed;
mod output;
mod pty;
mod quiet;
mod runs;
mod signals;
mod stdin;
mod stdio;
mod tasks;
mod terminal_clients;
mod traced;
mod trees;
mod tunnel;
mod unread;
mod uploads;
mod vanished;
