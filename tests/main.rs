//! Integration tests: each starts the real daemon, as PID 1 of a new namespace or as a subreaper, and uses its API.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs)]

mod harness;

/// Tests of which some take a minute or more. Tests are started in the order of their names: these first, so that the others
/// run beside them.
#[path = "."]
mod a_minute_or_more {
    mod terminal_clients;
    mod terminal_sessions;
    mod unreachable_clients;
}

mod blocked_in_kernel;
mod boot;
mod broken_connections;
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
mod events;
mod few_descriptors;
mod file_permissions;
mod files;
mod follow_output;
mod fork_server;
mod health_checks;
mod hostile_directories;
mod hostile_files;
mod hostile_user;
mod idempotency;
mod idle_daemon;
mod inherited_state;
mod invalid_fields;
mod invalid_requests;
mod large_trees;
mod limits;
mod lost_mounts;
mod main_process;
mod malformed_http;
mod managed_processes;
mod many_connections;
mod memory_pressure;
mod metrics;
mod namespace_script;
mod no_new_privs;
mod output;
mod overload;
mod pauses;
mod pid1_signals;
mod ports;
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
mod strangers;
mod stubborn_processes;
mod task_limit;
mod terminal_io;
mod token_file;
mod token_secrecy;
mod tunnels;
mod uploads;
mod usage;
mod waits;
