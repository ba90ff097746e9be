//! `GET /metrics`: the counters of this process, and what is only known at the time of the request.

use std::time::{Duration, Instant};

use tl_os::self_usage::self_usage;
use tl_os::thread;

use crate::http::api::Api;
use crate::http::api::routes::{Endpoint, ExpectedDuration, ROUTES};
use crate::http::api::usage_metrics;
use crate::http::message::{ExchangeObserver, Request, Response};
use crate::metrics::{Counter, Format, Histogram, Kind, METRICS, Page};
use crate::supervisor::Census;

/// How long to wait for the supervisor, and for each other thread that works. Together less than the 3 s after which
/// clients give up.
const PATIENCE: Duration = Duration::from_secs(1);

/// The classes of the status of a response. The last one stands for a client that has disconnected.
const CODES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "disconnected"];

/// How long requests may take, as values of the label `kind`.
const DURATIONS: [&str; 3] = ["short", "start", "long"];

const STATUSES: [&str; 4] = ["running", "exited", "signaled", "oom_killed"];
const MANAGED: [&str; 4] = ["starting", "running", "backing_off", "stopped"];
const SESSIONS: [&str; 2] = ["alive", "ended"];

/// The counters of requests.
#[derive(Debug)]
struct Requests {
    /// One row for each row of [`ROUTES`], and one for all requests without an endpoint: so the number of labels is
    /// limited whatever clients request.
    answered: [[Counter; CODES.len()]; ROUTES.len() + 1],
    durations: [Histogram; DURATIONS.len()],
}

static REQUESTS: Requests = Requests {
    answered: [const { [const { Counter::new() }; CODES.len()] }; ROUTES.len() + 1],
    durations: [const { Histogram::new() }; DURATIONS.len()],
};

impl ExchangeObserver for Requests {
    fn answered(&self, label: usize, status: Option<u16>) {
        let code = status.map_or(CODES.len() - 1, |status| usize::from(status / 100).saturating_sub(1));
        if let Some(counter) = self.answered.get(label / DURATIONS.len()).and_then(|codes| codes.get(code)) {
            counter.increment();
        }
    }

    fn ended(&self, label: usize, took: Duration) {
        if let Some(histogram) = self.durations.get(label % DURATIONS.len()) {
            histogram.observe(took);
        }
    }
}

/// Has the request counted, under its endpoint or, if it has none, with all others that have none.
pub(crate) fn observe(request: &mut Request<'_>, routed: Option<(usize, Endpoint)>) {
    let row = routed.map_or(ROUTES.len(), |(row, _)| row);
    let kind = match routed.map(|(_, endpoint)| endpoint.duration()) {
        None | Some(ExpectedDuration::Short) => 0,
        Some(ExpectedDuration::Start) => 1,
        Some(ExpectedDuration::Unbounded) => 2,
    };
    request.observe(&REQUESTS, row * DURATIONS.len() + kind);
}

/// All metrics, in the format that the client prefers. Answers within 3 s even if the supervisor hangs; then what only
/// the supervisor knows is left out.
pub(crate) fn scrape(api: &Api, request: &Request<'_>) -> Response {
    let format = Format::preferred(request.list("Accept").map(|ranges| ranges.join(",")).as_deref());
    let deadline = Instant::now() + PATIENCE;
    let census = api.handle.census(PATIENCE);
    let mut page = Page::new(format);
    page.family("build_info", Kind::Gauge, "Always 1; the label is the version.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    if let Some(census) = &census {
        write_census(&mut page, census);
        usage_metrics::write(api, &mut page, &STATUSES, deadline);
    }
    METRICS.write(&mut page);
    write_requests(&mut page, request);
    write_threads(&mut page, census.is_some());
    write_process(&mut page);
    Response::new(200, format.content_type(), page.finish())
}

fn write_census(page: &mut Page, census: &Census) {
    let by_state = |page: &mut Page, name, help, states: &[&str], counts: &[u64]| {
        page.family(name, Kind::Gauge, help);
        for (state, count) in states.iter().zip(counts) {
            page.sample(&[("status", state)], count);
        }
    };
    by_state(page, "processes", "Processes that are kept, by their status.", &STATUSES, &census.processes);
    let help = "Managed processes that are kept, by the status of their supervision.";
    by_state(page, "managed_processes", help, &MANAGED, &census.managed);
    by_state(page, "terminal_sessions", "Terminal sessions that are kept.", &SESSIONS, &census.sessions);
    page.family("terminal_clients", Kind::Gauge, "Clients that are attached to terminal sessions.");
    page.sample(&[], census.viewers);
}

fn write_requests(page: &mut Page, request: &Request<'_>) {
    page.family("http_requests", Kind::Counter, "Requests, by route, method and class of the status.");
    let labels = ROUTES.iter().map(|route| (route.method, route.template)).chain([("other", "other")]);
    for ((method, route), codes) in labels.zip(&REQUESTS.answered) {
        // Those that never occurred are left out: most routes have few of the classes.
        for (code, counter) in CODES.iter().zip(codes).filter(|(_, counter)| counter.get() > 0) {
            page.sample(&[("route", route), ("method", method), ("code", code)], counter.get());
        }
    }
    let help = "Time from the head of a request to the end of the response, by how long the route may take.";
    page.family("http_request_duration_seconds", Kind::Histogram, help);
    for (kind, histogram) in DURATIONS.iter().zip(&REQUESTS.durations) {
        histogram.write(page, "kind", kind);
    }
    let counts = request.connection_counts();
    page.family("http_connections_open", Kind::Gauge, "Connections that are open, that of this request included.");
    page.sample(&[], counts.open);
    page.family("http_connections_accepted", Kind::Counter, "Connections that were accepted.");
    page.sample(&[], counts.accepted);
    let help = "Connections that were refused: there was no descriptor, thread or memory for them.";
    page.family("http_connections_refused", Kind::Counter, help);
    page.sample(&[], counts.refused);
}

/// `answered`: the supervisor has answered a request.
fn write_threads(page: &mut Page, answered: bool) {
    let states = thread::states(PATIENCE);
    page.family(
        "thread_up",
        Kind::Gauge,
        "Whether the thread runs. The thread oom runs only where cgroups count memory.",
    );
    for state in &states {
        page.sample(&[("thread", state.name)], u8::from(state.is_up));
    }
    page.family("thread_responsive", Kind::Gauge, "Whether the thread waits for work, or got back to that within 1 s.");
    for state in &states {
        let is_responsive = if state.name == "supervisor" { answered } else { state.is_responsive };
        page.sample(&[("thread", state.name)], u8::from(is_responsive));
    }
}

/// The metrics that all clients of Prometheus have, under their common names.
fn write_process(page: &mut Page) {
    let usage = self_usage();
    if let Some(cpu) = usage.cpu {
        page.named("process_cpu_seconds", Kind::Counter, "CPU time of this process in seconds.");
        page.sample(&[], cpu.as_secs_f64());
    }
    if let Some(started) = usage.started {
        page.named(
            "process_start_time_seconds",
            Kind::Gauge,
            "Start of this process, in seconds since the Unix epoch.",
        );
        page.sample(&[], started.as_secs_f64());
    }
    for (name, help, value) in [
        ("process_open_fds", "Open descriptors of this process.", usage.open_fds),
        ("process_max_fds", "Limit on the open descriptors of this process.", usage.max_fds),
        ("process_virtual_memory_bytes", "Virtual memory of this process in bytes.", usage.virtual_memory),
        ("process_resident_memory_bytes", "Resident memory of this process in bytes.", usage.resident_memory),
    ] {
        if let Some(value) = value {
            page.named(name, Kind::Gauge, help);
            page.sample(&[], value);
        }
    }
}
