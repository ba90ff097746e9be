//! The table of the API's endpoints.

use crate::http::message::ApiError;
use crate::logs::View;

/// Every method that some path takes, in the order in which `Allow` names them.
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];

/// The endpoints of the API. The process or the session of a path is the parameter that [`route`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `GET /health`.
    Health,
    /// `GET /info`.
    Info,
    /// `GET /boot`.
    Boot,
    /// `GET /metrics`.
    Metrics,
    /// `POST /shutdown`.
    Shutdown,
    /// `GET /openapi.json`.
    OpenApi,
    /// `POST /processes`.
    Start,
    /// `GET /processes`.
    List,
    /// `POST /processes/run`.
    Run,
    /// `GET /processes/{process}`.
    Get,
    /// `DELETE /processes/{process}`.
    Kill,
    /// `GET /processes/{process}/stdout`, `stderr` or `output`.
    Output(View),
    /// `GET /processes/{process}/stdout/follow`, `stderr/follow` or `output/follow`.
    Follow(View),
    /// `POST /processes/{process}/signal`.
    Signal,
    /// `POST /processes/{process}/restart`.
    Restart,
    /// `POST /processes/{process}/pause`.
    Pause,
    /// `POST /processes/{process}/resume`.
    Resume,
    /// `POST /processes/{process}/stdin`.
    WriteStdin,
    /// `POST /processes/{process}/stdin/close`.
    CloseStdin,
    /// `GET /processes/{process}/wait`.
    Wait,
    /// `GET /processes/{process}/usage`.
    Usage,
    /// `GET /files`.
    ReadFile,
    /// `PUT /files`.
    WriteFile,
    /// `DELETE /files`.
    RemoveFile,
    /// `GET /files/list`.
    ListFiles,
    /// `POST /pty`.
    OpenPty,
    /// `GET /pty`.
    ListPtys,
    /// `GET /pty/{session}`.
    Pty,
    /// `POST /pty/{session}/resize`.
    ResizePty,
    /// `DELETE /pty/{session}`.
    KillPty,
    /// `GET /pty/{session}/ws`.
    AttachPty,
    /// `GET /tunnels/tcp`.
    Tunnel,
    /// `GET /events`.
    Events,
    /// `GET /ports`.
    Ports,
    /// `GET /ports/{port}/wait`.
    WaitPort,
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpectedDuration {
    /// Answered at once, or within 2 s.
    Short,
    /// Starts a program: reads `/etc/passwd`, and is answered 5 s later at most. The handler counts it
    /// ([`Request::begin_start`](crate::http::message::Request)) once it has the body.
    Start,
    /// Takes as long as the client, a process or a disk does.
    Unbounded,
}

impl Endpoint {
    /// How long the endpoint may take.
    pub(crate) fn duration(self) -> ExpectedDuration {
        match self {
            Endpoint::Start | Endpoint::OpenPty => ExpectedDuration::Start,
            Endpoint::Run
            | Endpoint::Output(_)
            | Endpoint::Follow(_)
            | Endpoint::Restart
            | Endpoint::WriteStdin
            | Endpoint::Wait
            | Endpoint::ReadFile
            | Endpoint::WriteFile
            | Endpoint::RemoveFile
            | Endpoint::ListFiles
            | Endpoint::AttachPty
            | Endpoint::Tunnel
            | Endpoint::Events
            | Endpoint::WaitPort => ExpectedDuration::Unbounded,
            Endpoint::Health
            | Endpoint::Info
            | Endpoint::Boot
            | Endpoint::Metrics
            | Endpoint::Shutdown
            | Endpoint::OpenApi
            | Endpoint::List
            | Endpoint::Get
            | Endpoint::Kill
            | Endpoint::Signal
            | Endpoint::Pause
            | Endpoint::Resume
            | Endpoint::CloseStdin
            | Endpoint::Usage
            | Endpoint::ListPtys
            | Endpoint::Pty
            | Endpoint::ResizePty
            | Endpoint::KillPty
            | Endpoint::Ports => ExpectedDuration::Short,
        }
    }

    /// Whether the endpoint needs no bearer token. A browser cannot send it with a WebSocket, for which a terminal
    /// session has a token of its own.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Endpoint::Health | Endpoint::OpenApi | Endpoint::AttachPty)
    }
}

/// A row of the table of endpoints.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    /// The path below `/api/v1`. A segment in braces, at most one in a path, is a parameter and stands for any segment.
    pub(crate) template: &'static str,
    pub(crate) endpoint: Endpoint,
}

impl Route {
    const fn new(method: &'static str, template: &'static str, endpoint: Endpoint) -> Route {
        Route { method, template, endpoint }
    }

    /// The value of the parameter in a path below `/api/v1`, which is empty if the path has none. None if the path does not
    /// match.
    fn parameter<'p>(&self, path: &[&'p str]) -> Option<&'p str> {
        let mut value = "";
        let mut segments = path.iter();
        for wanted in self.template.split('/').skip(1) {
            let segment = segments.next()?;
            if wanted.starts_with('{') {
                value = segment;
            } else if wanted != *segment {
                return None;
            }
        }
        segments.next().is_none().then_some(value)
    }
}

/// Every endpoint of the API, once. No two rows match the same method and path.
pub(crate) static ROUTES: [Route; 39] = [
    Route::new("GET", "/health", Endpoint::Health),
    Route::new("GET", "/info", Endpoint::Info),
    Route::new("GET", "/boot", Endpoint::Boot),
    Route::new("GET", "/metrics", Endpoint::Metrics),
    Route::new("POST", "/shutdown", Endpoint::Shutdown),
    Route::new("GET", "/openapi.json", Endpoint::OpenApi),
    Route::new("POST", "/processes", Endpoint::Start),
    Route::new("GET", "/processes", Endpoint::List),
    Route::new("POST", "/processes/run", Endpoint::Run),
    Route::new("GET", "/processes/{process}", Endpoint::Get),
    Route::new("DELETE", "/processes/{process}", Endpoint::Kill),
    Route::new("GET", "/processes/{process}/stdout", Endpoint::Output(View::Stdout)),
    Route::new("GET", "/processes/{process}/stderr", Endpoint::Output(View::Stderr)),
    Route::new("GET", "/processes/{process}/output", Endpoint::Output(View::Combined)),
    Route::new("GET", "/processes/{process}/stdout/follow", Endpoint::Follow(View::Stdout)),
    Route::new("GET", "/processes/{process}/stderr/follow", Endpoint::Follow(View::Stderr)),
    Route::new("GET", "/processes/{process}/output/follow", Endpoint::Follow(View::Combined)),
    Route::new("POST", "/processes/{process}/signal", Endpoint::Signal),
    Route::new("POST", "/processes/{process}/restart", Endpoint::Restart),
    Route::new("POST", "/processes/{process}/pause", Endpoint::Pause),
    Route::new("POST", "/processes/{process}/resume", Endpoint::Resume),
    Route::new("POST", "/processes/{process}/stdin", Endpoint::WriteStdin),
    Route::new("POST", "/processes/{process}/stdin/close", Endpoint::CloseStdin),
    Route::new("GET", "/processes/{process}/wait", Endpoint::Wait),
    Route::new("GET", "/processes/{process}/usage", Endpoint::Usage),
    Route::new("GET", "/files", Endpoint::ReadFile),
    Route::new("PUT", "/files", Endpoint::WriteFile),
    Route::new("DELETE", "/files", Endpoint::RemoveFile),
    Route::new("GET", "/files/list", Endpoint::ListFiles),
    Route::new("POST", "/pty", Endpoint::OpenPty),
    Route::new("GET", "/pty", Endpoint::ListPtys),
    Route::new("GET", "/pty/{id}", Endpoint::Pty),
    Route::new("DELETE", "/pty/{id}", Endpoint::KillPty),
    Route::new("POST", "/pty/{id}/resize", Endpoint::ResizePty),
    Route::new("GET", "/pty/{id}/ws", Endpoint::AttachPty),
    Route::new("GET", "/tunnels/tcp", Endpoint::Tunnel),
    Route::new("GET", "/events", Endpoint::Events),
    Route::new("GET", "/ports", Endpoint::Ports),
    Route::new("GET", "/ports/{port}/wait", Endpoint::WaitPort),
];

/// The endpoint with this method and this path, with the index of its row in [`ROUTES`] and the value of the path's
/// parameter. A HEAD request has the method GET here.
pub(crate) fn route<'p>(method: &str, path: &[&'p str]) -> Option<(usize, Endpoint, &'p str)> {
    let ["api", "v1", path @ ..] = path else { return None };
    ROUTES.iter().enumerate().find_map(|(row, route)| {
        if route.method != method {
            return None;
        }
        Some((row, route.endpoint, route.parameter(path)?))
    })
}

/// Whether the process API answers such a request within 5 s once it has the whole of it, whatever processes, clients and
/// disks do. False for a request that it does not know. `path` is percent-encoded, and HEAD counts as GET: for a proxy, which
/// can give up a daemon that does not answer.
///
/// ```
/// use tl_supervisor::http::answers_soon;
///
/// assert!(answers_soon("POST", "/api/v1/processes"));
/// assert!(!answers_soon("POST", "/api/v1/processes/run"));
/// assert!(!answers_soon("GET", "/metrics"));
/// ```
#[must_use]
pub fn answers_soon(method: &str, path: &str) -> bool {
    let method = if method == "HEAD" { "GET" } else { method };
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let Some((_, endpoint, _)) = route(method, &segments) else { return false };
    match endpoint.duration() {
        ExpectedDuration::Short | ExpectedDuration::Start => true,
        ExpectedDuration::Unbounded => false,
    }
}

/// The error for a path that [`route`] does not find: 405 if it takes other methods, else 404.
pub(crate) fn no_route(method: &str, path: &str, segments: &[&str]) -> ApiError {
    let known = METHODS.iter().filter(|method| route(method, segments).is_some());
    let names = known.flat_map(|method| match *method {
        "GET" => vec!["GET", "HEAD"],
        method => vec![method],
    });
    let allowed = names.collect::<Vec<_>>().join(", ");
    if allowed.is_empty() {
        return ApiError::no_route(path);
    }
    ApiError::method_not_allowed(method, path, &allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed<'p>(method: &str, path: &'p str) -> Option<(Endpoint, &'p str)> {
        route(method, &path.split('/').collect::<Vec<_>>()).map(|(_, endpoint, parameter)| (endpoint, parameter))
    }

    #[test]
    fn a_path_that_is_made_of_a_template_finds_its_row() {
        for (row, route) in ROUTES.iter().enumerate() {
            let path = format!("api/v1{}", route.template.replace(['{', '}'], ""));
            let found = super::route(route.method, &path.split('/').collect::<Vec<_>>()).unwrap();
            assert_eq!(found.0, row, "{path}");
        }
    }

    #[test]
    fn every_endpoint_has_a_method_and_a_path() {
        for (method, path, right) in [
            ("GET", "health", Endpoint::Health),
            ("GET", "info", Endpoint::Info),
            ("GET", "boot", Endpoint::Boot),
            ("GET", "metrics", Endpoint::Metrics),
            ("POST", "shutdown", Endpoint::Shutdown),
            ("GET", "openapi.json", Endpoint::OpenApi),
            ("GET", "processes", Endpoint::List),
            ("POST", "processes", Endpoint::Start),
            ("POST", "processes/run", Endpoint::Run),
            ("GET", "processes/run", Endpoint::Get),
            ("GET", "processes/305", Endpoint::Get),
            ("DELETE", "processes/web", Endpoint::Kill),
            ("GET", "processes/web/stdout", Endpoint::Output(View::Stdout)),
            ("GET", "processes/web/stderr", Endpoint::Output(View::Stderr)),
            ("GET", "processes/web/output", Endpoint::Output(View::Combined)),
            ("GET", "processes/web/stdout/follow", Endpoint::Follow(View::Stdout)),
            ("GET", "processes/web/stderr/follow", Endpoint::Follow(View::Stderr)),
            ("GET", "processes/web/output/follow", Endpoint::Follow(View::Combined)),
            ("POST", "processes/web/signal", Endpoint::Signal),
            ("POST", "processes/web/restart", Endpoint::Restart),
            ("POST", "processes/web/pause", Endpoint::Pause),
            ("POST", "processes/web/resume", Endpoint::Resume),
            ("POST", "processes/web/stdin", Endpoint::WriteStdin),
            ("POST", "processes/web/stdin/close", Endpoint::CloseStdin),
            ("GET", "processes/web/wait", Endpoint::Wait),
            ("GET", "processes/web/usage", Endpoint::Usage),
            ("GET", "files", Endpoint::ReadFile),
            ("PUT", "files", Endpoint::WriteFile),
            ("DELETE", "files", Endpoint::RemoveFile),
            ("GET", "files/list", Endpoint::ListFiles),
            ("POST", "pty", Endpoint::OpenPty),
            ("GET", "pty", Endpoint::ListPtys),
            ("GET", "pty/x", Endpoint::Pty),
            ("DELETE", "pty/x", Endpoint::KillPty),
            ("POST", "pty/x/resize", Endpoint::ResizePty),
            ("GET", "pty/x/ws", Endpoint::AttachPty),
            ("GET", "tunnels/tcp", Endpoint::Tunnel),
            ("GET", "events", Endpoint::Events),
            ("GET", "ports", Endpoint::Ports),
            ("GET", "ports/80/wait", Endpoint::WaitPort),
        ] {
            let parameter = path
                .split('/')
                .nth(1)
                .filter(|_| !matches!(right, Endpoint::Run | Endpoint::ListFiles | Endpoint::Tunnel))
                .unwrap_or_default();
            assert_eq!(routed(method, &format!("api/v1/{path}")), Some((right, parameter)), "{method} {path}");
        }
    }

    #[test]
    fn unknown_paths_are_404_and_unknown_methods_405() {
        let refused = |method: &str, path: &str| {
            let segments: Vec<&str> = path.split('/').collect();
            assert_eq!(routed(method, path), None, "{path}");
            no_route(method, path, &segments)
        };
        for path in ["", "health", "api/v1", "api/v1/", "api/v1/health/", "api/v2/health", "api/v1/processes/1/x"] {
            assert_eq!(refused("GET", path).code(), "NOT_FOUND", "{path}");
        }
        for (method, path, right) in [
            ("POST", "api/v1/health", "GET, HEAD"),
            ("DELETE", "api/v1/processes", "GET, HEAD, POST"),
            ("PUT", "api/v1/processes/run", "GET, HEAD, POST, DELETE"),
            ("GET", "api/v1/processes/1/signal", "POST"),
            ("PATCH", "api/v1/processes/1", "GET, HEAD, DELETE"),
            ("POST", "api/v1/files", "GET, HEAD, PUT, DELETE"),
            ("PUT", "api/v1/files/list", "GET, HEAD"),
        ] {
            let response = refused(method, path).to_response();
            assert_eq!((response.status(), response.get("Allow")), (405, Some(right.as_bytes())), "{path}");
        }
    }
}
