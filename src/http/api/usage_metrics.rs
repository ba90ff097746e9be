//! The usage of processes, as part of the metrics: sums by the status of the processes, and series of the processes that
//! were asked for by their names.

use std::time::Instant;

use crate::http::api::Api;
use crate::metrics::{Kind, Page};
use crate::model::{Target, Usage};
use crate::supervisor::UsageSums;

/// The modes of CPU time, as values of the label `mode`.
const MODES: [&str; 2] = ["user", "system"];

/// A part of the sums.
type Part = fn(&UsageSums) -> u64;

/// A part of the usage of one process.
type NamedPart = fn(&Usage) -> Option<u64>;

/// Writes the usage of processes, whose statuses have these names. The sums are left out if the supervisor does not reply
/// before the deadline.
pub(super) fn write(api: &Api, page: &mut Page, statuses: &[&str; 4], deadline: Instant) {
    if let Some(sums) = api.handle.usage_sums(deadline) {
        write_sums(page, statuses, &sums);
    }
    let named = api.metrics_per_process.iter();
    let named =
        named.filter_map(|name| Some((name.as_str(), api.handle.usage_until(&Target::Name(name.clone()), deadline)?)));
    let named: Vec<(&str, Usage)> = named.collect();
    if !named.is_empty() {
        write_named(page, &named);
    }
}

#[cold]
fn write_sums(page: &mut Page, statuses: &[&str; 4], sums: &[UsageSums; 4]) {
    let help = "CPU time of the processes that are kept, by their status. It falls when ended ones are forgotten.";
    page.family("processes_cpu_seconds", Kind::Gauge, help);
    for (status, sums) in statuses.iter().zip(sums) {
        for (mode, ms) in MODES.iter().zip([sums.cpu_user_ms, sums.cpu_system_ms]) {
            page.sample(&[("status", status), ("mode", mode)], seconds(ms));
        }
    }
    let parts: [(&str, &str, Part); 5] = [
        ("processes_memory_bytes", "Memory that processes use, by their status.", |sums| sums.memory_bytes),
        ("processes_tasks", "Processes and threads of processes, by their status.", |sums| sums.processes),
        ("processes_read_bytes", "Bytes that the processes that are kept have read from storage.", |sums| {
            sums.read_bytes
        }),
        ("processes_written_bytes", "Bytes that the processes that are kept have written to storage.", |sums| {
            sums.written_bytes
        }),
        ("processes_oom_kills", "Kills for lack of memory in the trees of the processes that are kept.", |sums| {
            sums.oom_kills
        }),
    ];
    for (name, help, part) in parts {
        page.family(name, Kind::Gauge, help);
        for (status, sums) in statuses.iter().zip(sums) {
            page.sample(&[("status", status)], part(sums));
        }
    }
}

#[cold]
fn write_named(page: &mut Page, named: &[(&str, Usage)]) {
    page.family("named_process_cpu_seconds", Kind::Counter, "CPU time of the current or last run of a process.");
    for (name, usage) in named {
        for (mode, ms) in MODES.iter().zip([usage.cpu_user_ms, usage.cpu_system_ms]) {
            if let Some(ms) = ms {
                page.sample(&[("name", name), ("mode", mode)], seconds(ms));
            }
        }
    }
    let parts: [(&str, Kind, &str, NamedPart); 6] = [
        ("named_process_memory_bytes", Kind::Gauge, "Memory that a process uses.", |usage| usage.memory_bytes),
        (
            "named_process_memory_peak_bytes",
            Kind::Gauge,
            "The most memory that the current or last run of a process has used.",
            |usage| usage.memory_peak_bytes,
        ),
        ("named_process_tasks", Kind::Gauge, "Processes and threads of a process.", |usage| usage.processes),
        (
            "named_process_read_bytes",
            Kind::Counter,
            "Bytes that the current or last run of a process has read from storage.",
            |usage| usage.read_bytes,
        ),
        (
            "named_process_written_bytes",
            Kind::Counter,
            "Bytes that the current or last run of a process has written to storage.",
            |usage| usage.written_bytes,
        ),
        (
            "named_process_oom_kills",
            Kind::Counter,
            "Kills for lack of memory in the current or last run of a process.",
            |usage| usage.oom_kills,
        ),
    ];
    for (metric, kind, help, part) in parts {
        page.family(metric, kind, help);
        for (name, usage) in named {
            if let Some(number) = part(usage) {
                page.sample(&[("name", name)], number);
            }
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}
