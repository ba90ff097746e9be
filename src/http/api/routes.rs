//! From method and path to what was asked for, behind the token.

use std::sync::Arc;
use std::time::Instant;

use subtle::ConstantTimeEq;
use tiny_http::Method;

use crate::logs::View;
use crate::model::Target;
use crate::supervisor::Handle;

use crate::http::Auth;
use crate::http::api::system::Host;
use crate::http::api::{about, attach, control, files, output, processes, pty, run, system, tunnel};
use crate::http::message::conditions;
use crate::http::message::request::Request;
use crate::http::message::response::Answer;
use crate::http::message::response_head::Problem;

/// The methods that some path is known with, in the order in which `Allow` names them.
const METHODS: [Method; 4] = [Method::Get, Method::Post, Method::Put, Method::Delete];

/// What handlers work with.
pub(in crate::http) struct Api {
    /// The supervisor.
    pub(in crate::http) handle: Handle,
    /// When the server began.
    pub(in crate::http) started: Instant,
    /// The program around us.
    pub(in crate::http) host: Option<Arc<dyn Host>>,
    auth: Auth,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint {
    Health,
    Info,
    Boot,
    Shutdown,
    Start,
    List,
    Run,
    Get(Target),
    Kill(Target),
    Output(Target, View),
    Follow(Target, View),
    Signal(Target),
    Restart(Target),
    WriteStdin(Target),
    CloseStdin(Target),
    Wait(Target),
    ReadFile,
    WriteFile,
    RemoveFile,
    ListFiles,
    OpenPty,
    ListPtys,
    Pty(String),
    ResizePty(String),
    KillPty(String),
    AttachPty(String),
    Tunnel,
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// Answered from what the daemon knows, or within 2 s.
    Short,
    /// Starts a program: answered within 5 s.
    Start,
    /// As long as the client, a process or a disk likes.
    Long,
}

impl Endpoint {
    fn length(&self) -> Length {
        match self {
            Endpoint::Start | Endpoint::OpenPty => Length::Start,
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
            | Endpoint::Tunnel => Length::Long,
            Endpoint::Health
            | Endpoint::Info
            | Endpoint::Boot
            | Endpoint::Shutdown
            | Endpoint::List
            | Endpoint::Get(_)
            | Endpoint::Kill(_)
            | Endpoint::Signal(_)
            | Endpoint::CloseStdin(_)
            | Endpoint::ListPtys
            | Endpoint::Pty(_)
            | Endpoint::ResizePty(_)
            | Endpoint::KillPty(_) => Length::Short,
        }
    }
}

/// The one table of the API. A HEAD has been made a GET.
fn route(method: &Method, path: &[&str]) -> Option<Endpoint> {
    let ["api", "v1", path @ ..] = path else { return None };
    let endpoint = match (method, path) {
        (Method::Get, ["health"]) => Endpoint::Health,
        (Method::Get, ["info"]) => Endpoint::Info,
        (Method::Get, ["boot"]) => Endpoint::Boot,
        (Method::Post, ["shutdown"]) => Endpoint::Shutdown,
        (Method::Post, ["processes"]) => Endpoint::Start,
        (Method::Get, ["processes"]) => Endpoint::List,
        (Method::Post, ["processes", "run"]) => Endpoint::Run,
        (Method::Get, ["processes", process]) => Endpoint::Get(Target::parse(process)),
        (Method::Delete, ["processes", process]) => Endpoint::Kill(Target::parse(process)),
        (Method::Get, ["processes", process, stream @ ("stdout" | "stderr" | "output")]) => {
            Endpoint::Output(Target::parse(process), view(stream))
        }
        (Method::Get, ["processes", process, stream @ ("stdout" | "stderr" | "output"), "follow"]) => {
            Endpoint::Follow(Target::parse(process), view(stream))
        }
        (Method::Post, ["processes", process, "signal"]) => Endpoint::Signal(Target::parse(process)),
        (Method::Post, ["processes", process, "restart"]) => Endpoint::Restart(Target::parse(process)),
        (Method::Post, ["processes", process, "stdin"]) => Endpoint::WriteStdin(Target::parse(process)),
        (Method::Post, ["processes", process, "stdin", "close"]) => Endpoint::CloseStdin(Target::parse(process)),
        (Method::Get, ["processes", process, "wait"]) => Endpoint::Wait(Target::parse(process)),
        (Method::Get, ["files"]) => Endpoint::ReadFile,
        (Method::Put, ["files"]) => Endpoint::WriteFile,
        (Method::Delete, ["files"]) => Endpoint::RemoveFile,
        (Method::Get, ["files", "list"]) => Endpoint::ListFiles,
        (Method::Post, ["pty"]) => Endpoint::OpenPty,
        (Method::Get, ["pty"]) => Endpoint::ListPtys,
        (Method::Get, ["pty", session]) => Endpoint::Pty((*session).to_owned()),
        (Method::Delete, ["pty", session]) => Endpoint::KillPty((*session).to_owned()),
        (Method::Post, ["pty", session, "resize"]) => Endpoint::ResizePty((*session).to_owned()),
        (Method::Get, ["pty", session, "ws"]) => Endpoint::AttachPty((*session).to_owned()),
        (Method::Get, ["tunnels", "tcp"]) => Endpoint::Tunnel,
        _ => return None,
    };
    Some(endpoint)
}

fn view(segment: &str) -> View {
    match segment {
        "stdout" => View::Stdout,
        "stderr" => View::Stderr,
        _ => View::Combined,
    }
}

/// Why [`route`] finds nothing: no such path, or not with this method.
fn no_route(method: &Method, path: &str, segments: &[&str]) -> Problem {
    let known = METHODS.iter().filter(|method| route(method, segments).is_some());
    let names = known.flat_map(|method| match method {
        Method::Get => vec!["GET", "HEAD"],
        method => vec![method.as_str()],
    });
    let allowed = names.collect::<Vec<_>>().join(", ");
    if allowed.is_empty() {
        return Problem::NoRoute(path.to_owned());
    }
    Problem::MethodNotAllowed { method: method.to_string(), path: path.to_owned(), allowed }
}

impl Api {
    /// The API of `handle` for those whom `auth` lets in.
    pub(in crate::http) fn new(handle: Handle, auth: Auth, host: Option<Arc<dyn Host>>) -> Api {
        Api { handle, started: Instant::now(), host, auth }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Whatever is wrong with it; [`Problem::Unauthorized`] before anything else is said about it.
    pub(in crate::http) fn answer(&self, request: &mut Request<'_>) -> Result<Answer, Problem> {
        let segments = request.segments();
        let path: Vec<&str> = segments.iter().flatten().map(String::as_str).collect();
        let endpoint = route(request.method(), &path);
        // A browser cannot send the bearer token with a WebSocket; a session has a token of its own.
        let is_open = matches!(endpoint, Some(Endpoint::Health | Endpoint::AttachPty(_)));
        if !is_open && !self.auth.lets_in(request.field("Authorization").as_deref()) {
            return Err(Problem::Unauthorized);
        }
        let Some(endpoint) = endpoint else {
            if segments.is_none() {
                return Err(Problem::NoRoute(request.path().to_owned()));
            }
            return Err(no_route(request.method(), request.path(), &path));
        };
        conditions::check_coding(request)?;
        match endpoint.length() {
            Length::Short => {}
            Length::Start => request.begin_start()?,
            Length::Long => request.begin_long()?,
        }
        match endpoint {
            Endpoint::Health => Ok(about::health()),
            Endpoint::Info => about::info(self),
            Endpoint::Boot => Ok(system::boot(self)),
            Endpoint::Shutdown => system::shutdown(self, request),
            Endpoint::Start => processes::start(self, request),
            Endpoint::List => processes::list(self),
            Endpoint::Run => run::run(self, request),
            Endpoint::Get(target) => processes::get(self, &target),
            Endpoint::Kill(target) => control::kill(self, &target),
            Endpoint::Output(target, view) => output::read(self, request, &target, view),
            Endpoint::Follow(target, view) => output::follow(self, request, &target, view),
            Endpoint::Signal(target) => control::signal(self, request, &target),
            Endpoint::Restart(target) => control::restart(self, &target),
            Endpoint::WriteStdin(target) => control::write_stdin(self, request, &target),
            Endpoint::CloseStdin(target) => control::close_stdin(self, &target),
            Endpoint::Wait(target) => control::wait(self, request, &target),
            Endpoint::ReadFile => files::read(self, request),
            Endpoint::WriteFile => files::write(self, request),
            Endpoint::RemoveFile => files::remove(self, request),
            Endpoint::ListFiles => files::list(self, request),
            Endpoint::OpenPty => pty::open(self, request),
            Endpoint::ListPtys => pty::list(self),
            Endpoint::Pty(session) => pty::get(self, &session),
            Endpoint::ResizePty(session) => pty::resize(self, request, &session),
            Endpoint::KillPty(session) => pty::kill(self, &session),
            Endpoint::AttachPty(session) => attach::attach(self, request, &session),
            Endpoint::Tunnel => tunnel::open(request),
        }
    }
}

impl Auth {
    fn lets_in(&self, authorization: Option<&str>) -> bool {
        let token = match self {
            Auth::Anybody => return true,
            Auth::Nobody => return false,
            Auth::Token(token) => token,
        };
        let Some((scheme, sent)) = authorization.and_then(|value| value.split_once(' ')) else { return false };
        let right = bool::from(sent.trim().as_bytes().ct_eq(token));
        scheme.eq_ignore_ascii_case("Bearer") && right && !token.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(method: &Method, path: &str) -> Option<Endpoint> {
        route(method, &path.split('/').collect::<Vec<_>>())
    }

    #[test]
    fn every_endpoint() {
        let web = || Target::Name("web".to_owned());
        for (method, path, right) in [
            (Method::Get, "health", Endpoint::Health),
            (Method::Get, "info", Endpoint::Info),
            (Method::Get, "boot", Endpoint::Boot),
            (Method::Post, "shutdown", Endpoint::Shutdown),
            (Method::Get, "processes", Endpoint::List),
            (Method::Post, "processes", Endpoint::Start),
            (Method::Post, "processes/run", Endpoint::Run),
            (Method::Get, "processes/run", Endpoint::Get(Target::Name("run".to_owned()))),
            (Method::Get, "processes/305", Endpoint::Get(Target::Pid(305))),
            (Method::Delete, "processes/web", Endpoint::Kill(web())),
            (Method::Get, "processes/web/stdout", Endpoint::Output(web(), View::Stdout)),
            (Method::Get, "processes/web/stderr", Endpoint::Output(web(), View::Stderr)),
            (Method::Get, "processes/web/output", Endpoint::Output(web(), View::Combined)),
            (Method::Get, "processes/web/stdout/follow", Endpoint::Follow(web(), View::Stdout)),
            (Method::Get, "processes/web/stderr/follow", Endpoint::Follow(web(), View::Stderr)),
            (Method::Get, "processes/web/output/follow", Endpoint::Follow(web(), View::Combined)),
            (Method::Post, "processes/web/signal", Endpoint::Signal(web())),
            (Method::Post, "processes/web/restart", Endpoint::Restart(web())),
            (Method::Post, "processes/web/stdin", Endpoint::WriteStdin(web())),
            (Method::Post, "processes/web/stdin/close", Endpoint::CloseStdin(web())),
            (Method::Get, "processes/web/wait", Endpoint::Wait(web())),
            (Method::Get, "files", Endpoint::ReadFile),
            (Method::Put, "files", Endpoint::WriteFile),
            (Method::Delete, "files", Endpoint::RemoveFile),
            (Method::Get, "files/list", Endpoint::ListFiles),
            (Method::Post, "pty", Endpoint::OpenPty),
            (Method::Get, "pty", Endpoint::ListPtys),
            (Method::Get, "pty/x", Endpoint::Pty("x".to_owned())),
            (Method::Delete, "pty/x", Endpoint::KillPty("x".to_owned())),
            (Method::Post, "pty/x/resize", Endpoint::ResizePty("x".to_owned())),
            (Method::Get, "pty/x/ws", Endpoint::AttachPty("x".to_owned())),
            (Method::Get, "tunnels/tcp", Endpoint::Tunnel),
        ] {
            assert_eq!(routed(&method, &format!("api/v1/{path}")), Some(right), "{method} {path}");
        }
    }

    #[test]
    fn unknown_paths_and_methods() {
        let refused = |method: Method, path: &str| {
            let segments: Vec<&str> = path.split('/').collect();
            assert_eq!(route(&method, &segments), None, "{path}");
            no_route(&method, path, &segments)
        };
        for path in ["", "health", "api/v1", "api/v1/", "api/v1/health/", "api/v2/health", "api/v1/processes/1/x"] {
            assert!(matches!(refused(Method::Get, path), Problem::NoRoute(_)), "{path}");
        }
        for (method, path, right) in [
            (Method::Post, "api/v1/health", "GET, HEAD"),
            (Method::Delete, "api/v1/processes", "GET, HEAD, POST"),
            (Method::Put, "api/v1/processes/run", "GET, HEAD, POST, DELETE"),
            (Method::Get, "api/v1/processes/1/signal", "POST"),
            (Method::Patch, "api/v1/processes/1", "GET, HEAD, DELETE"),
            (Method::Post, "api/v1/files", "GET, HEAD, PUT, DELETE"),
            (Method::Put, "api/v1/files/list", "GET, HEAD"),
        ] {
            let Problem::MethodNotAllowed { allowed, .. } = refused(method, path) else { panic!("{path}") };
            assert_eq!(allowed, right, "{path}");
        }
    }

    #[test]
    fn tokens() {
        let token = Auth::Token(b"s3cret".to_vec());
        for (value, right) in [
            (Some("Bearer s3cret"), true),
            (Some("bearer  s3cret"), true),
            (Some("BEARER s3cret"), true),
            (Some("Bearer s3cre"), false),
            (Some("Bearer s3crets"), false),
            (Some("Bearer "), false),
            (Some("Bearer"), false),
            (Some("Basic s3cret"), false),
            (Some("s3cret"), false),
            (None, false),
        ] {
            assert_eq!(token.lets_in(value), right, "{value:?}");
        }
        assert!(Auth::Anybody.lets_in(None));
        assert!(!Auth::Nobody.lets_in(Some("Bearer ")));
        assert!(!Auth::Token(Vec::new()).lets_in(Some("Bearer ")), "an empty token is nobody's");
    }
}
