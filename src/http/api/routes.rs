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
    /// `GET /openapi.json`.
    OpenApi,
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
            | Endpoint::OpenApi
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

    /// Whether the endpoint needs no bearer token. A browser cannot send it with a WebSocket, for which a terminal
    /// session has a token of its own.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Endpoint::Health | Endpoint::OpenApi | Endpoint::AttachPty(_))
    }
}

/// A row of the table of endpoints.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    /// The path below `/api/v1`. A segment in braces, at most one in a path, is a parameter and stands for any segment.
    pub(crate) template: &'static str,
    /// Makes the endpoint of the value of the parameter, which is empty if the path has none.
    endpoint: fn(&str) -> Endpoint,
}

impl Route {
    const fn new(method: &'static str, template: &'static str, endpoint: fn(&str) -> Endpoint) -> Route {
        Route { method, template, endpoint }
    }

    /// Whether the endpoint needs no bearer token.
    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        (self.endpoint)("").is_open()
    }

    /// The value of the parameter in a path below `/api/v1`. None if the path does not match.
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
pub(crate) static ROUTES: [Route; 33] = [
    Route::new("GET", "/health", |_| Endpoint::Health),
    Route::new("GET", "/info", |_| Endpoint::Info),
    Route::new("GET", "/boot", |_| Endpoint::Boot),
    Route::new("GET", "/metrics", |_| Endpoint::Metrics),
    Route::new("POST", "/shutdown", |_| Endpoint::Shutdown),
    Route::new("GET", "/openapi.json", |_| Endpoint::OpenApi),
    Route::new("POST", "/processes", |_| Endpoint::Start),
    Route::new("GET", "/processes", |_| Endpoint::List),
    Route::new("POST", "/processes/run", |_| Endpoint::Run),
    Route::new("GET", "/processes/{process}", |process| Endpoint::Get(Target::parse(process))),
    Route::new("DELETE", "/processes/{process}", |process| Endpoint::Kill(Target::parse(process))),
    Route::new("GET", "/processes/{process}/stdout", |process| output(process, View::Stdout)),
    Route::new("GET", "/processes/{process}/stderr", |process| output(process, View::Stderr)),
    Route::new("GET", "/processes/{process}/output", |process| output(process, View::Combined)),
    Route::new("GET", "/processes/{process}/stdout/follow", |process| follow(process, View::Stdout)),
    Route::new("GET", "/processes/{process}/stderr/follow", |process| follow(process, View::Stderr)),
    Route::new("GET", "/processes/{process}/output/follow", |process| follow(process, View::Combined)),
    Route::new("POST", "/processes/{process}/signal", |process| Endpoint::Signal(Target::parse(process))),
    Route::new("POST", "/processes/{process}/restart", |process| Endpoint::Restart(Target::parse(process))),
    Route::new("POST", "/processes/{process}/stdin", |process| Endpoint::WriteStdin(Target::parse(process))),
    Route::new("POST", "/processes/{process}/stdin/close", |process| Endpoint::CloseStdin(Target::parse(process))),
    Route::new("GET", "/processes/{process}/wait", |process| Endpoint::Wait(Target::parse(process))),
    Route::new("GET", "/files", |_| Endpoint::ReadFile),
    Route::new("PUT", "/files", |_| Endpoint::WriteFile),
    Route::new("DELETE", "/files", |_| Endpoint::RemoveFile),
    Route::new("GET", "/files/list", |_| Endpoint::ListFiles),
    Route::new("POST", "/pty", |_| Endpoint::OpenPty),
    Route::new("GET", "/pty", |_| Endpoint::ListPtys),
    Route::new("GET", "/pty/{id}", |session| Endpoint::Pty(session.to_owned())),
    Route::new("DELETE", "/pty/{id}", |session| Endpoint::KillPty(session.to_owned())),
    Route::new("POST", "/pty/{id}/resize", |session| Endpoint::ResizePty(session.to_owned())),
    Route::new("GET", "/pty/{id}/ws", |session| Endpoint::AttachPty(session.to_owned())),
    Route::new("GET", "/tunnels/tcp", |_| Endpoint::Tunnel),
];

fn output(process: &str, view: View) -> Endpoint {
    Endpoint::Output(Target::parse(process), view)
}

fn follow(process: &str, view: View) -> Endpoint {
    Endpoint::Follow(Target::parse(process), view)
}

/// The endpoint with this method and this path, and the index of its row in [`ROUTES`]. A HEAD request has the method
/// GET here.
pub(crate) fn route(method: &str, path: &[&str]) -> Option<(usize, Endpoint)> {
    let ["api", "v1", path @ ..] = path else { return None };
    ROUTES.iter().enumerate().find_map(|(row, route)| {
        if route.method != method {
            return None;
        }
        Some((row, (route.endpoint)(route.parameter(path)?)))
    })
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
        route(method, &path.split('/').collect::<Vec<_>>()).map(|(_, endpoint)| endpoint)
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
        let web = || Target::Name("web".to_owned());
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
            assert_eq!(routed(method, &format!("api/v1/{path}")), Some(right), "{method} {path}");
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
