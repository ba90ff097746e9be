//! `GET /metrics`, in the text formats of Prometheus.

use tl_os::self_usage::self_usage;
use tl_supervisor::http::message::{ApiError, Request, Response};
use tl_supervisor::metrics::{Format, Kind, Page};

use crate::api::Api;
use crate::sandbox::counters::Metrics;

/// All metrics, in the format that the client prefers.
pub(crate) fn scrape(api: &Api, request: &Request<'_>) -> Result<Response, ApiError> {
    let format = Format::preferred(request.list("Accept").map(|ranges| ranges.join(",")).as_deref());
    let mut page = Page::new(format);
    page.named("tl_host_build_info", Kind::Gauge, "Always 1; the label is the version.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    write_sandboxes(&mut page, &api.sandboxes.metrics());
    (api.proxy_metrics)(&mut page);
    write_process(&mut page);
    Ok(Response::new(200, format.content_type(), page.finish()))
}

fn write_sandboxes(page: &mut Page, metrics: &Metrics) {
    page.named("tl_host_sandboxes", Kind::Gauge, "Sandboxes that are listed, by their status.");
    for (status, count) in metrics.sandboxes {
        page.sample(&[("status", status.as_str())], count);
    }
    page.named("tl_host_warm_containers", Kind::Gauge, "Containers that are ready for the next sandbox.");
    page.sample(&[], metrics.warm);
    page.named("tl_host_creates", Kind::Counter, "Sandboxes that were made, by where their container came from.");
    page.sample(&[("from", "warm_pool")], metrics.created_from_warm_pool);
    page.sample(&[("from", "image")], metrics.created.saturating_sub(metrics.created_from_warm_pool));
    for (name, help, value) in [
        ("tl_host_create_failures", "Sandboxes that could not be made.", metrics.create_failed),
        (
            "tl_host_sandboxes_lost",
            "Sandboxes that have ended without having been asked to.",
            metrics.ended_from_outside,
        ),
        ("tl_host_engine_errors", "Calls to the engine that have failed.", metrics.engine_errors),
    ] {
        page.named(name, Kind::Counter, help);
        page.sample(&[], value);
    }
    let help = "Time from a request for a sandbox to the first answer of its tl-init.";
    page.named("tl_host_create_duration_seconds", Kind::Histogram, help);
    for (limit, count) in metrics.create_classes {
        page.part("_bucket", &[("le", &(limit as f64 / 1000.0).to_string())], count);
    }
    page.part("_bucket", &[("le", "+Inf")], metrics.created);
    page.part("_sum", &[], metrics.create_seconds);
    page.part("_count", &[], metrics.created);
}

/// Some of the metrics that all clients of Prometheus have, under their common names.
fn write_process(page: &mut Page) {
    let usage = self_usage();
    if let Some(cpu) = usage.cpu {
        page.named("process_cpu_seconds", Kind::Counter, "CPU time of this process in seconds.");
        page.sample(&[], cpu.as_secs_f64());
    }
    for (name, help, value) in [
        ("process_open_fds", "Open descriptors of this process.", usage.open_fds),
        ("process_max_fds", "Limit on the open descriptors of this process.", usage.max_fds),
        ("process_resident_memory_bytes", "Resident memory of this process in bytes.", usage.resident_memory),
    ] {
        if let Some(value) = value {
            page.named(name, Kind::Gauge, help);
            page.sample(&[], value);
        }
    }
}
