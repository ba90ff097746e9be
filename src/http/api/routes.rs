//! The table of the API's endpoints.

use crate::http::message::ApiError;
use crate::logs::View;
use crate::model::Target;

/// Every method that some path takes, in the order in which `Allow` names them.
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];

/// The endpoints of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// `POST /processes`.
    Start,
    /// `GET /processes`.
    List,
    /// `POST /processes/run`.
    Run,
    /// `GET /processes/{process}`.
    Get(Target),
    /// `DELETE /processes/{process}`.
    Kill(Target),
    /// `GET /processes/{process}/stdout`, `stderr` or `output`.
    Output(Target, View),
    /// `GET /processes/{process}/stdout/follow`, `stderr/follow` or `output/follow`.
    Follow(Target, View),
    /// `POST /processes/{process}/signal`.
    Signal(Target),
    /// `POST /processes/{process}/restart`.
    Restart(Target),
    /// `POST /processes/{process}/stdin`.
    WriteStdin(Target),
    /// `POST /processes/{process}/stdin/close`.
    CloseStdin(Target),
    /// `GET /processes/{process}/wait`.
    Wait(Target),
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
    Pty(String),
    /// `POST /pty/{session}/resize`.
    ResizePty(String),
    /// `DELETE /pty/{session}`.
    KillPty(String),
    /// `GET /pty/{session}/ws`.
    AttachPty(String),
    /// `GET /tunnels/tcp`.
    Tunnel,
}

/// The method and the path of each endpoint, below `/api/v1`; the last row stands for all requests without an endpoint.
/// These are the labels of the metrics, so that their number is limited whatever clients request.
pub(crate) const ROUTES: [(&str, &str); 33] = [
    ("GET", "/health"),
    ("GET", "/info"),
    ("GET", "/boot"),
    ("GET", "/metrics"),
    ("POST", "/shutdown"),
    ("GET", "/processes"),
    ("POST", "/processes"),
    ("POST", "/processes/run"),
    ("GET", "/processes/{process}"),
    ("DELETE", "/processes/{process}"),
    ("GET", "/processes/{process}/stdout"),
    ("GET", "/processes/{process}/stderr"),
    ("GET", "/processes/{process}/output"),
    ("GET", "/processes/{process}/stdout/follow"),
    ("GET", "/processes/{process}/stderr/follow"),
    ("GET", "/processes/{process}/output/follow"),
    ("POST", "/processes/{process}/signal"),
    ("POST", "/processes/{process}/restart"),
    ("POST", "/processes/{process}/stdin"),
    ("POST", "/processes/{process}/stdin/close"),
    ("GET", "/processes/{process}/wait"),
    ("GET", "/files"),
    ("PUT", "/files"),
    ("DELETE", "/files"),
    ("GET", "/files/list"),
    ("POST", "/pty"),
    ("GET", "/pty"),
    ("GET", "/pty/{session}"),
    ("DELETE", "/pty/{session}"),
    ("POST", "/pty/{session}/resize"),
    ("GET", "/pty/{session}/ws"),
    ("GET", "/tunnels/tcp"),
    ("other", "other"),
];

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
    pub(crate) fn duration(&self) -> ExpectedDuration {
        match self {
            Endpoint::Start | Endpoint::OpenPty => ExpectedDuration::Start,
            Endpoint::Run
            | Endpoint::Output(..)
            | Endpoint::Follow(..)
            | Endpoint::Restart(_)
            | Endpoint::WriteStdin(_)
            | Endpoint::Wait(_)
            | Endpoint::ReadFile
            | Endpoint::WriteFile
            | Endpoint::RemoveFile
            | Endpoint::ListFiles
            | Endpoint::AttachPty(_)
            | Endpoint::Tunnel => ExpectedDuration::Unbounded,
            Endpoint::Health
            | Endpoint::Info
            | Endpoint::Boot
            | Endpoint::Metrics
            | Endpoint::Shutdown
            | Endpoint::List
            | Endpoint::Get(_)
            | Endpoint::Kill(_)
            | Endpoint::Signal(_)
            | Endpoint::CloseStdin(_)
            | Endpoint::ListPtys
            | Endpoint::Pty(_)
            | Endpoint::ResizePty(_)
            | Endpoint::KillPty(_) => ExpectedDuration::Short,
        }
    }

    /// Its row in [`ROUTES`].
    pub(crate) fn row(&self) -> usize {
        match self {
            Endpoint::Health => 0,
            Endpoint::Info => 1,
            Endpoint::Boot => 2,
            Endpoint::Metrics => 3,
            Endpoint::Shutdown => 4,
            Endpoint::List => 5,
            Endpoint::Start => 6,
            Endpoint::Run => 7,
            Endpoint::Get(_) => 8,
            Endpoint::Kill(_) => 9,
            Endpoint::Output(_, View::Stdout) => 10,
            Endpoint::Output(_, View::Stderr) => 11,
            Endpoint::Output(_, View::Combined) => 12,
            Endpoint::Follow(_, View::Stdout) => 13,
            Endpoint::Follow(_, View::Stderr) => 14,
            Endpoint::Follow(_, View::Combined) => 15,
            Endpoint::Signal(_) => 16,
            Endpoint::Restart(_) => 17,
            Endpoint::WriteStdin(_) => 18,
            Endpoint::CloseStdin(_) => 19,
            Endpoint::Wait(_) => 20,
            Endpoint::ReadFile => 21,
            Endpoint::WriteFile => 22,
            Endpoint::RemoveFile => 23,
            Endpoint::ListFiles => 24,
            Endpoint::OpenPty => 25,
            Endpoint::ListPtys => 26,
            Endpoint::Pty(_) => 27,
            Endpoint::KillPty(_) => 28,
            Endpoint::ResizePty(_) => 29,
            Endpoint::AttachPty(_) => 30,
            Endpoint::Tunnel => 31,
        }
    }

    /// Whether the endpoint needs no bearer token. A browser cannot send it with a WebSocket, for which a terminal
    /// session has a token of its own.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Endpoint::Health | Endpoint::AttachPty(_))
    }
}

/// The endpoint with this method and this path. A HEAD request has the method GET here.
pub(crate) fn route(method: &str, path: &[&str]) -> Option<Endpoint> {
    let ["api", "v1", path @ ..] = path else { return None };
    let endpoint = match (method, path) {
        ("GET", ["health"]) => Endpoint::Health,
        ("GET", ["info"]) => Endpoint::Info,
        ("GET", ["boot"]) => Endpoint::Boot,
        ("GET", ["metrics"]) => Endpoint::Metrics,
        ("POST", ["shutdown"]) => Endpoint::Shutdown,
        ("POST", ["processes"]) => Endpoint::Start,
        ("GET", ["processes"]) => Endpoint::List,
        ("POST", ["processes", "run"]) => Endpoint::Run,
        ("GET", ["processes", process]) => Endpoint::Get(Target::parse(process)),
        ("DELETE", ["processes", process]) => Endpoint::Kill(Target::parse(process)),
        ("GET", ["processes", process, stream @ ("stdout" | "stderr" | "output")]) => {
            Endpoint::Output(Target::parse(process), view(stream))
        }
        ("GET", ["processes", process, stream @ ("stdout" | "stderr" | "output"), "follow"]) => {
            Endpoint::Follow(Target::parse(process), view(stream))
        }
        ("POST", ["processes", process, "signal"]) => Endpoint::Signal(Target::parse(process)),
        ("POST", ["processes", process, "restart"]) => Endpoint::Restart(Target::parse(process)),
        ("POST", ["processes", process, "stdin"]) => Endpoint::WriteStdin(Target::parse(process)),
        ("POST", ["processes", process, "stdin", "close"]) => Endpoint::CloseStdin(Target::parse(process)),
        ("GET", ["processes", process, "wait"]) => Endpoint::Wait(Target::parse(process)),
        ("GET", ["files"]) => Endpoint::ReadFile,
        ("PUT", ["files"]) => Endpoint::WriteFile,
        ("DELETE", ["files"]) => Endpoint::RemoveFile,
        ("GET", ["files", "list"]) => Endpoint::ListFiles,
        ("POST", ["pty"]) => Endpoint::OpenPty,
        ("GET", ["pty"]) => Endpoint::ListPtys,
        ("GET", ["pty", session]) => Endpoint::Pty((*session).to_owned()),
        ("DELETE", ["pty", session]) => Endpoint::KillPty((*session).to_owned()),
        ("POST", ["pty", session, "resize"]) => Endpoint::ResizePty((*session).to_owned()),
        ("GET", ["pty", session, "ws"]) => Endpoint::AttachPty((*session).to_owned()),
        ("GET", ["tunnels", "tcp"]) => Endpoint::Tunnel,
        _ => return None,
    };
    Some(endpoint)
}

/// The view of the output that a segment of the path names.
fn view(segment: &str) -> View {
    match segment {
        "stdout" => View::Stdout,
        "stderr" => View::Stderr,
        _ => View::Combined,
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

    fn routed(method: &str, path: &str) -> Option<Endpoint> {
        route(method, &path.split('/').collect::<Vec<_>>())
    }

    #[test]
    fn every_endpoint_has_a_method_and_a_path() {
        let web = || Target::Name("web".to_owned());
        for (method, path, right) in [
            ("GET", "health", Endpoint::Health),
            ("GET", "info", Endpoint::Info),
            ("GET", "boot", Endpoint::Boot),
            ("GET", "metrics", Endpoint::Metrics),
            ("POST", "shutdown", Endpoint::Shutdown),
            ("GET", "processes", Endpoint::List),
            ("POST", "processes", Endpoint::Start),
            ("POST", "processes/run", Endpoint::Run),
            ("GET", "processes/run", Endpoint::Get(Target::Name("run".to_owned()))),
            ("GET", "processes/305", Endpoint::Get(Target::Pid(305))),
            ("DELETE", "processes/web", Endpoint::Kill(web())),
            ("GET", "processes/web/stdout", Endpoint::Output(web(), View::Stdout)),
            ("GET", "processes/web/stderr", Endpoint::Output(web(), View::Stderr)),
            ("GET", "processes/web/output", Endpoint::Output(web(), View::Combined)),
            ("GET", "processes/web/stdout/follow", Endpoint::Follow(web(), View::Stdout)),
            ("GET", "processes/web/stderr/follow", Endpoint::Follow(web(), View::Stderr)),
            ("GET", "processes/web/output/follow", Endpoint::Follow(web(), View::Combined)),
            ("POST", "processes/web/signal", Endpoint::Signal(web())),
            ("POST", "processes/web/restart", Endpoint::Restart(web())),
            ("POST", "processes/web/stdin", Endpoint::WriteStdin(web())),
            ("POST", "processes/web/stdin/close", Endpoint::CloseStdin(web())),
            ("GET", "processes/web/wait", Endpoint::Wait(web())),
            ("GET", "files", Endpoint::ReadFile),
            ("PUT", "files", Endpoint::WriteFile),
            ("DELETE", "files", Endpoint::RemoveFile),
            ("GET", "files/list", Endpoint::ListFiles),
            ("POST", "pty", Endpoint::OpenPty),
            ("GET", "pty", Endpoint::ListPtys),
            ("GET", "pty/x", Endpoint::Pty("x".to_owned())),
            ("DELETE", "pty/x", Endpoint::KillPty("x".to_owned())),
            ("POST", "pty/x/resize", Endpoint::ResizePty("x".to_owned())),
            ("GET", "pty/x/ws", Endpoint::AttachPty("x".to_owned())),
            ("GET", "tunnels/tcp", Endpoint::Tunnel),
        ] {
            let (of_row, template) = ROUTES[right.row()];
            let is_like = |(of_path, of_template): (&str, &str)| of_template.starts_with('{') || of_path == of_template;
            let segments = path.split('/').zip(template.trim_start_matches('/').split('/'));
            assert!(of_row == method && segments.clone().all(is_like), "{method} {path}: {template}");
            assert_eq!(segments.count(), path.split('/').count().max(template.matches('/').count()), "{template}");
            assert_eq!(routed(method, &format!("api/v1/{path}")), Some(right), "{method} {path}");
        }
    }

    #[test]
    fn unknown_paths_are_404_and_unknown_methods_405() {
        let refused = |method: &str, path: &str| {
            let segments: Vec<&str> = path.split('/').collect();
            assert_eq!(route(method, &segments), None, "{path}");
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
