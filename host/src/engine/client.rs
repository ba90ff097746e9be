//! One request to the engine and its answer: the version of the API, time limits, bounded bodies, errors.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::StatusCode;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::{Agent, Body, SendBody};

use super::transport::{NoResolver, TcpConnector, UnixConnector};
use super::{EngineError, EngineInfo, EngineUrl, quota, wire};

/// Time limit of calls that only read, or change a little.
pub(super) const PLAIN: Duration = Duration::from_secs(10);
/// Time limit of calls that make or end processes, which a loaded machine does slowly.
pub(super) const SLOW: Duration = Duration::from_secs(60);
/// Time limit of calls that copy file systems.
pub(super) const COPYING: Duration = Duration::from_secs(3600);
/// The largest answer that is read: a list of all containers of a big machine is far smaller.
const LARGEST_ANSWER: u64 = 64 << 20;

/// The version of the API whose requests this client sends; Docker 20.10 and Podman 4 have it.
const VERSION: (u32, u32) = (1, 41);

/// The engine. Clones share their settings. No connection is kept between calls, because making one takes
/// microseconds and a kept one may belong to an engine that has been restarted.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    url: EngineUrl,
    agent: Agent,
    /// None until the first call, and after the engine was gone: another one may have come in its place.
    known: Mutex<Option<Arc<Known>>>,
}

/// What is known of the engine as long as it can be reached.
#[derive(Debug)]
struct Known {
    /// The start of all URLs, for the version of the API that both sides know.
    base: String,
    version: wire::Version,
}

/// Podman's constants for what Docker answers with 409.
const CONFLICTS: [&str; 2] = ["container state improper", "that name is already in use"];

/// A request.
pub(super) struct Call<'a> {
    pub(super) method: &'a str,
    /// Path after the version.
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<Value>,
    pub(super) limit: Duration,
}

impl Call<'_> {
    pub(super) fn new(method: &str, path: impl Into<String>) -> Call<'_> {
        Call { method, path: path.into(), query: Vec::new(), body: None, limit: PLAIN }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn body(self, body: Value) -> Self {
        Call { body: Some(body), ..self }
    }

    pub(super) fn limit(self, limit: Duration) -> Self {
        Call { limit, ..self }
    }

    /// For messages: `POST /containers/create`.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

impl Engine {
    pub(crate) fn new(url: EngineUrl) -> Engine {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            // Not that of the environment: the engine is on this machine or named explicitly.
            .proxy(None)
            .user_agent(concat!("tl-host/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = match &url {
            EngineUrl::Unix(path) => Agent::with_parts(config, UnixConnector { path: path.clone() }, NoResolver),
            EngineUrl::Tcp(_) => Agent::with_parts(config, TcpConnector, DefaultResolver::default()),
        };
        Engine { shared: Arc::new(Shared { url, agent, known: Mutex::new(None) }) }
    }

    pub(crate) fn url(&self) -> &EngineUrl {
        &self.shared.url
    }

    /// What the engine says about itself.
    pub(crate) fn info(&self) -> Result<EngineInfo, EngineError> {
        let known = self.known()?;
        let info: wire::Info = self.json(&Call::new("GET", "/info"))?;
        let limits_disk = quota::limits_disk(&info);
        let is_local = matches!(self.shared.url, EngineUrl::Unix(_));
        let disk_mb = is_local.then(|| quota::disk_mb(&info)).flatten();
        Ok(EngineInfo { disk_mb, ..info.into_engine_info(&known.version, limits_disk) })
    }

    /// Performs a call whose answer is JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, EngineError> {
        let bytes = self.bytes(call)?;
        serde_json::from_slice(&bytes).map_err(|error| invalid(call, &error))
    }

    /// Performs a call and returns the whole body of its answer.
    pub(super) fn bytes(&self, call: &Call<'_>) -> Result<Vec<u8>, EngineError> {
        let mut answer = self.send(call)?;
        self.whole_body(call, &mut answer)
    }

    /// Performs a call and returns its answer, whose body is not read yet and has the call's time limit too.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Body, EngineError> {
        let body = match &call.body {
            Some(body) => SendBody::from_json(body).map_err(|error| self.failure(call, error))?,
            None => SendBody::none(),
        };
        self.exchange(call, "application/json", body, Some(call.limit))
    }

    /// As [`Engine::send`], with a tar archive as the body.
    pub(super) fn upload(&self, call: &Call<'_>, archive: impl Read) -> Result<Vec<u8>, EngineError> {
        let mut source = Source { archive, error: None };
        let result = self
            .exchange(call, "application/x-tar", SendBody::from_reader(&mut source), Some(call.limit))
            .and_then(|mut answer| self.whole_body(call, &mut answer));
        match source.error {
            Some(error) => Err(EngineError::Source(error)),
            None => result,
        }
    }

    /// As [`Engine::send`], for an answer that may come at any time and has no end.
    pub(super) fn stream(&self, call: &Call<'_>) -> Result<Body, EngineError> {
        self.exchange(call, "application/json", SendBody::none(), None)
    }

    fn exchange(
        &self,
        call: &Call<'_>,
        content_type: &str,
        body: SendBody<'_>,
        limit: Option<Duration>,
    ) -> Result<Body, EngineError> {
        let known = self.known()?;
        let has_body = call.method == "POST";
        let mut request = ureq::http::Request::builder().method(call.method).uri(uri(&known.base, call));
        if has_body {
            request = request.header("Content-Type", content_type);
        }
        let request = request.body(body).map_err(|error| invalid(call, &error))?;
        let request = self.shared.agent.configure_request(request);
        let request = request.timeout_connect(Some(PLAIN)).timeout_global(limit).build();
        let mut answer = self.shared.agent.run(request).map_err(|error| self.failure(call, error))?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(answer.into_body());
        }
        let body = self.whole_body(call, answer.body_mut())?;
        Err(refusal(status, &body))
    }

    fn whole_body(&self, call: &Call<'_>, body: &mut Body) -> Result<Vec<u8>, EngineError> {
        body.with_config().limit(LARGEST_ANSWER).read_to_vec().map_err(|error| self.failure(call, error))
    }

    /// What is asked of the engine only once: Podman takes a second or more for its answer.
    fn known(&self) -> Result<Arc<Known>, EngineError> {
        let known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let host = match &self.shared.url {
            EngineUrl::Unix(_) => "localhost",
            EngineUrl::Tcp(address) => address,
        };
        let call = Call::new("GET", "/version");
        let request = self.shared.agent.get(format!("http://{host}/version"));
        let request = request.config().timeout_global(Some(PLAIN)).build();
        let mut answer = request.call().map_err(|error| self.failure(&call, error))?;
        let bytes = self.whole_body(&call, answer.body_mut())?;
        if !answer.status().is_success() {
            return Err(refusal(answer.status(), &bytes));
        }
        let version: wire::Version = serde_json::from_slice(&bytes).map_err(|error| invalid(&call, &error))?;
        let (major, minor) = chosen_version(&version).ok_or_else(|| invalid(&call, &"a version that is not known"))?;
        let base = format!("http://{host}/v{major}.{minor}");
        let known = Arc::new(Known { base, version });
        *self.shared.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&known));
        Ok(known)
    }

    /// What an error of the HTTP client means.
    pub(super) fn failure(&self, call: &Call<'_>, error: ureq::Error) -> EngineError {
        let unreachable = |cause: String| {
            *self.shared.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
            EngineError::Unreachable { url: self.shared.url.to_string(), cause }
        };
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                unreachable("no connection in time".to_owned())
            }
            ureq::Error::Timeout(_) => EngineError::TimedOut(call.limit, call.name()),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                unreachable("the connection has ended early".to_owned())
            }
            ureq::Error::Io(error) => unreachable(plain_cause(&error)),
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => unreachable(error.to_string()),
            error => invalid(call, &error),
        }
    }
}

/// The sentence of an error of a socket, without the number that the standard library adds.
fn plain_cause(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

pub(super) fn invalid(call: &Call<'_>, cause: &dyn std::fmt::Display) -> EngineError {
    EngineError::Invalid { request: call.name(), cause: cause.to_string() }
}

/// The error for an answer that is no success. The sentence is the engine's.
fn refusal(status: StatusCode, body: &[u8]) -> EngineError {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
        /// Only Podman: the innermost error.
        #[serde(default)]
        cause: String,
    }
    let (message, cause) = match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => (refusal.message, refusal.cause),
        Err(_) => (String::from_utf8_lossy(body.get(..1024).unwrap_or(body)).trim().to_owned(), String::new()),
    };
    match status {
        // Podman 4 has no status of its own for these.
        StatusCode::INTERNAL_SERVER_ERROR if CONFLICTS.contains(&cause.as_str()) => EngineError::Conflict(message),
        StatusCode::NOT_FOUND => EngineError::NotFound(message),
        StatusCode::CONFLICT => EngineError::Conflict(message),
        status => EngineError::Refused { status: status.as_u16(), message },
    }
}

/// The version of the API to use: this client's, or the engine's oldest one if that is newer.
fn chosen_version(version: &wire::Version) -> Option<(u32, u32)> {
    let parse = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let newest: (u32, u32) = parse(&version.api_version)?;
    let oldest = version.min_api_version.as_deref().and_then(parse).unwrap_or((0, 0));
    Some(VERSION.min(newest).max(oldest))
}

fn uri(base: &str, call: &Call<'_>) -> String {
    let mut uri = format!("{base}{}", call.path);
    for (index, (name, value)) in call.query.iter().enumerate() {
        uri.push(if index == 0 { '?' } else { '&' });
        uri.push_str(name);
        uri.push('=');
        push_encoded(&mut uri, value);
    }
    uri
}

/// Appends `value` percent-encoded, so that it can stand in a query.
fn push_encoded(uri: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// Remembers why an archive could not be read, to tell that from a lost connection.
struct Source<R> {
    archive: R,
    error: Option<io::Error>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.archive.read(buffer).map_err(|error| {
            let copy = io::Error::new(error.kind(), "the archive cannot be read");
            self.error = Some(error);
            copy
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_one_that_both_sides_know() {
        let chosen = |newest: &str, oldest: Option<&str>| {
            chosen_version(&wire::Version {
                api_version: newest.to_owned(),
                min_api_version: oldest.map(str::to_owned),
                ..Default::default()
            })
        };
        assert_eq!(chosen("1.41", Some("1.24")), Some((1, 41)));
        assert_eq!(chosen("1.40", None), Some((1, 40)));
        assert_eq!(chosen("1.40", Some("1.24")), Some((1, 40)));
        assert_eq!(chosen("1.52", Some("1.44")), Some((1, 44)));
        assert_eq!(chosen("", None), None);
    }

    #[test]
    fn an_error_has_the_sentence_of_the_engine() {
        let not_found = refusal(StatusCode::NOT_FOUND, br#"{"cause":"c","message":"no such image","response":404}"#);
        assert!(matches!(not_found, EngineError::NotFound(message) if message == "no such image"));
        let conflict = refusal(StatusCode::CONFLICT, br#"{"message":"in use"}"#);
        assert!(matches!(conflict, EngineError::Conflict(message) if message == "in use"));
        let improper = br#"{"cause":"container state improper","message":"not paused","response":500}"#;
        let conflict = refusal(StatusCode::INTERNAL_SERVER_ERROR, improper);
        assert!(matches!(conflict, EngineError::Conflict(message) if message == "not paused"));
        let text = refusal(StatusCode::BAD_GATEWAY, b"bad gateway\n");
        assert!(matches!(text, EngineError::Refused { status: 502, message } if message == "bad gateway"));
    }

    #[test]
    fn values_of_a_query_are_encoded() {
        let call = Call::new("GET", "/events").query("filters", r#"{"a":["b=c"]}"#).query("x", "é+");
        assert_eq!(uri("http://d", &call), "http://d/events?filters=%7B%22a%22%3A%5B%22b%3Dc%22%5D%7D&x=%C3%A9%2B");
    }
}
