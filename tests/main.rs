//! Integration tests: each starts the real daemon, as PID 1 of a new namespace or as a subreaper, and uses its API.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs)]

mod harness;

mod blocked_in_kernel;
mod boot;
mod cgroup_failures;
mod changed_streams;
mod child_environment;
mod command_line;
mod console_output;
mod cors;
mod create_user;
mod ctl;
mod daemon_log;
mod dead_disk;
mod file_permissions;
mod files;
mod follow_output;
mod fork_server;
mod health_checks;
mod idle_daemon;
mod invalid_fields;
mod invalid_requests;
mod large_trees;
mod limits;
mod main_process;
mod malformed_http;
mod managed_processes;
mod metrics;
mod namespace_script;
mod output;
mod overload;
mod pid1_signals;
mod process_control;
mod process_trees;
mod ptrace;
mod restart_stress;
mod runs;
mod shutdown;
mod signal_masks;
mod slow_readers;
mod stdin;
mod stdio_reopen;
mod stopped_daemon;
mod stubborn_processes;
mod task_limit;
mod terminal_clients;
mod terminal_io;
mod terminal_sessions;
mod token_file;
mod tunnels;
mod unreachable_clients;
mod uploads;
