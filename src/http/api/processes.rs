//! `POST /processes`, `GET /processes`, `GET /processes/{process}`.

use std::time::Duration;
use std::{io, vec};

use serde::Deserialize;

use crate::error::{Error, SpecError};
use crate::model::{
    HealthCheck, HealthKind, Leftovers, MAX_MS, ManagedSpec, Operation, OutputMode, Pipes, Policy, ProcessInfo,
    ProcessSpec, RestartPolicy, SpecBuilder, StdinMode, Target,
};

use crate::http::api::{Api, idempotency};
use crate::http::json;
use crate::http::json::limits::{LimitsBody, limits};
use crate::http::json::response;
use crate::http::json::user::User;
use crate::http::json::value::{Choice, Integer, JsonString, Object, StringList, StringMap, Truth};
use crate::http::message::{ApiError, BURST, Request, Response};

/// A duration in milliseconds.
type Ms = Integer<0, MAX_MS>;
type AtLeastOneMs = Integer<1, MAX_MS>;
type Count = Integer<0, { u32::MAX as u64 }>;
type AtLeastOne = Integer<1, { u32::MAX as u64 }>;

/// The body of `POST /processes`.
#[derive(Debug, Deserialize)]
pub(crate) struct StartBody {
    command: JsonString,
    args: Option<StringList>,
    env: Option<StringMap>,
    working_dir: Option<JsonString>,
    user: Option<User>,
    stdin_mode: Option<Choice<StdinMode>>,
    stdout_mode: Option<Choice<OutputMode>>,
    stderr_mode: Option<Choice<OutputMode>>,
    name: Option<JsonString>,
    restart: Option<Object<RestartBody>>,
    health_check: Option<Object<HealthBody>>,
    stop_grace_ms: Option<Ms>,
    leftovers: Option<Choice<Leftovers>>,
    limits: Option<Object<LimitsBody>>,
    no_new_privs: Option<Truth>,
}

#[derive(Debug, Deserialize)]
struct RestartBody {
    policy: Option<Choice<Policy>>,
    max_restarts: Option<Count>,
    initial_backoff_ms: Option<Ms>,
    max_backoff_ms: Option<Ms>,
}

#[derive(Debug, Deserialize)]
struct HealthBody {
    #[serde(rename = "type")]
    kind: Choice<HealthKind>,
    port: Integer<1, 65535>,
    path: Option<JsonString>,
    initial_delay_ms: Option<Ms>,
    interval_ms: Option<AtLeastOneMs>,
    timeout_ms: Option<AtLeastOneMs>,
    failure_threshold: Option<AtLeastOne>,
}

/// The fields that are common to all bodies that start a program.
pub(crate) struct Command {
    pub(crate) command: JsonString,
    pub(crate) args: Option<StringList>,
    pub(crate) env: Option<StringMap>,
    pub(crate) working_dir: Option<JsonString>,
    pub(crate) user: Option<User>,
    pub(crate) leftovers: Option<Choice<Leftovers>>,
    pub(crate) limits: Option<Object<LimitsBody>>,
    pub(crate) no_new_privs: Option<Truth>,
}

impl Command {
    /// A spec with these fields, to which the body adds its own.
    pub(crate) fn spec(self) -> SpecBuilder {
        let mut spec = ProcessSpec::command(self.command.0).args(self.args.unwrap_or_default().0);
        spec = spec.limits(limits(self.limits)).no_new_privs(self.no_new_privs.unwrap_or_default().0);
        for (key, value) in self.env.unwrap_or_default().0 {
            spec = spec.env(key, value);
        }
        if let Some(JsonString(dir)) = self.working_dir {
            spec = spec.working_dir(dir);
        }
        if let Some(Choice(leftovers)) = self.leftovers {
            spec = spec.leftovers(leftovers);
        }
        match self.user {
            Some(user) => spec.user(user.0),
            None => spec,
        }
    }
}

impl StartBody {
    fn into_spec(self) -> Result<ProcessSpec, SpecError> {
        let StartBody { command, args, env, working_dir, user, leftovers, limits, no_new_privs, .. } = self;
        let command = Command { command, args, env, working_dir, user, leftovers, limits, no_new_privs };
        let mut spec = command.spec().stdio(Pipes {
            stdin: self.stdin_mode.unwrap_or_default().0,
            stdout: self.stdout_mode.unwrap_or_default().0,
            stderr: self.stderr_mode.unwrap_or_default().0,
        });
        if self.name.is_some() || self.restart.is_some() || self.health_check.is_some() {
            let mut managed = ManagedSpec::new(Policy::Never);
            managed.name = self.name.map(|name| name.0);
            if let Some(Object(restart)) = self.restart {
                managed.restart = restart.into();
            }
            managed.health = self.health_check.map(|Object(health)| health.into());
            if let Some(grace) = self.stop_grace_ms {
                managed.stop_grace = Duration::from_millis(grace.0);
            }
            spec = spec.managed(managed);
        }
        spec.build()
    }
}

impl From<RestartBody> for RestartPolicy {
    fn from(body: RestartBody) -> RestartPolicy {
        let default = RestartPolicy::new(body.policy.unwrap_or_default().0);
        RestartPolicy {
            // The type has checked the range.
            max_restarts: body.max_restarts.map(|count| u32::try_from(count.0).unwrap_or(u32::MAX)),
            initial_backoff_ms: body.initial_backoff_ms.map_or(default.initial_backoff_ms, |ms| ms.0),
            max_backoff_ms: body.max_backoff_ms.map_or(default.max_backoff_ms, |ms| ms.0),
            ..default
        }
    }
}

impl From<HealthBody> for HealthCheck {
    fn from(body: HealthBody) -> HealthCheck {
        // The types of the fields have checked that the numbers fit.
        let port = u16::try_from(body.port.0).unwrap_or(u16::MAX);
        let default = match body.kind.0 {
            HealthKind::Http => HealthCheck::http(port, "/"),
            HealthKind::Tcp => HealthCheck::tcp(port),
        };
        let threshold = body.failure_threshold.map(|count| u32::try_from(count.0).unwrap_or(u32::MAX));
        HealthCheck {
            path: body.path.map(|path| path.0).or(default.path),
            initial_delay_ms: body.initial_delay_ms.map_or(default.initial_delay_ms, |ms| ms.0),
            interval_ms: body.interval_ms.map_or(default.interval_ms, |ms| ms.0),
            timeout_ms: body.timeout_ms.map_or(default.timeout_ms, |ms| ms.0),
            failure_threshold: threshold.unwrap_or(default.failure_threshold),
            ..default
        }
    }
}

/// A body of `POST /processes` is invalid. The sentence names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidBody(String);

/// Parses a body of `POST /processes` that does not come from a request, for example from a file.
///
/// ```
/// use tl_supervisor::http::parse_process;
///
/// assert!(parse_process(br#"{"command":"sleep","args":["1"]}"#).is_ok());
/// let error = parse_process(br#"{"command":5}"#).unwrap_err();
/// assert_eq!(error.to_string(), "`command`: must be a string, not 5");
/// ```
///
/// # Errors
/// If it is not JSON, or a field is missing or wrong.
pub fn parse_process(json: &[u8]) -> Result<ProcessSpec, InvalidBody> {
    let body = json::parse::<StartBody>(json).map_err(|error| InvalidBody(error.to_string()))?;
    body.into_spec().map_err(|error| InvalidBody(error.to_string()))
}

/// Starts a process. Answers once the program runs, or has failed to start.
pub(crate) fn start(api: &Api, request: &mut Request<'_>) -> Result<Response, ApiError> {
    let body = request.whole_body()?;
    let key = idempotency::key_of(request, Operation::Start, &body)?;
    let spec = json::parse::<StartBody>(&body)?.into_spec().map_err(Error::from)?;
    drop(body);
    request.begin_start()?;
    let started = api.handle.start_or_repeat(spec.with_request(key))?;
    Ok(idempotency::mark(response::of(201, started.result), started.is_repeat))
}

/// Lists all processes as they are at one moment, oldest first.
pub(crate) fn list(api: &Api) -> Result<Response, ApiError> {
    let mut list =
        ProcessList { processes: api.handle.list()?.into_iter(), begun: None, separator: b"{\"processes\":[" };
    let more = move |out: &mut Vec<u8>| list.more(out);
    // The client must read within the default deadline: until then, the list keeps processes in memory that the
    // supervisor has dropped meanwhile.
    response::in_bursts(None, more).map_err(|error| Error::internal(error).into())
}

/// Writes the JSON of all processes, a burst at a time.
struct ProcessList {
    processes: vec::IntoIter<ProcessInfo>,
    /// A process that is partly written, and how many of its bytes have been written.
    begun: Option<(ProcessInfo, usize)>,
    /// What is written before the next process.
    separator: &'static [u8],
}

impl ProcessList {
    /// Appends a burst. Returns whether this was the last.
    fn more(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let full = out.len() + BURST;
        while out.len() < full {
            let begun = self.begun.take().or_else(|| {
                let process = self.processes.next()?;
                out.extend_from_slice(std::mem::replace(&mut self.separator, b","));
                Some((process, 0))
            });
            let Some((process, written)) = begun else {
                // Without any process, the list has not been opened yet.
                out.extend_from_slice(if self.separator == b"," { b"]}" } else { b"{\"processes\":[]}" });
                return Ok(true);
            };
            let before = out.len();
            if !json::append_slice(out, &process, written, full.saturating_sub(before).max(1))? {
                self.begun = Some((process, written + out.len() - before));
            }
        }
        Ok(false)
    }
}

/// What the current or last run of a process has used.
pub(crate) fn usage(api: &Api, target: &Target) -> Result<Response, ApiError> {
    Ok(response::whole(200, &api.handle.usage(target)?))
}

/// Gets one process.
pub(crate) fn get(api: &Api, target: &Target) -> Result<Response, ApiError> {
    Ok(response::of(200, api.handle.get(target)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UserSpec;

    fn spec(body: &str) -> Result<ProcessSpec, String> {
        parse_process(body.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_unmanaged_process_is_parsed() {
        let plain = spec(r#"{"command":"sh"}"#).unwrap();
        assert_eq!(plain, ProcessSpec::command("sh").build().unwrap());
        let nulls = r#"{"command":"sh","args":null,"env":null,"working_dir":null,"user":null,"stdin_mode":null,
            "stdout_mode":null,"stderr_mode":null,"name":null,"restart":null,"health_check":null,"stop_grace_ms":null,
            "no_new_privs":null,"timeout":"ignored","new_field":[1]}"#;
        assert_eq!(spec(nulls).unwrap(), plain);
        assert_eq!(spec(r#"{"command":"sh","stop_grace_ms":5}"#).unwrap(), plain);
        let full = spec(
            r#"{"command":"sh","args":["-c","x"],"env":{"A":"1","B":""},"working_dir":"/tmp","user":"root",
            "stdin_mode":"pipe","stdout_mode":"discard","stderr_mode":"capture","leftovers":"kill",
            "no_new_privs":true}"#,
        );
        let right = ProcessSpec::command("sh").args(["-c", "x"]).env("A", "1").env("B", "").working_dir("/tmp");
        let root = UserSpec::Name { name: "root".to_owned(), gid: None };
        let pipes = Pipes { stdin: StdinMode::Pipe, stdout: OutputMode::Discard, stderr: OutputMode::Capture };
        let right = right.user(root).stdio(pipes).leftovers(Leftovers::Kill).no_new_privs(true).build();
        assert_eq!(full.unwrap(), right.unwrap());
    }

    #[test]
    fn a_managed_process_is_parsed() {
        let managed = |body: &str| {
            let spec = spec(&format!("{{\"command\":\"sh\",{body}}}")).unwrap();
            ManagedSpec::clone(spec.managed.as_ref().unwrap())
        };
        let named = managed(r#""name":"web""#);
        assert_eq!(named, ManagedSpec { name: Some("web".to_owned()), ..ManagedSpec::new(Policy::Never) });
        assert_eq!(managed(r#""restart":{}"#), ManagedSpec::new(Policy::OnFailure));
        let full = managed(
            r#""restart":{"policy":"always","max_restarts":0,"initial_backoff_ms":1,"max_backoff_ms":2},
            "stop_grace_ms":3,"health_check":{"type":"http","port":8080}"#,
        );
        assert_eq!(full.stop_grace, Duration::from_millis(3));
        let policy =
            RestartPolicy { policy: Policy::Always, max_restarts: Some(0), initial_backoff_ms: 1, max_backoff_ms: 2 };
        assert_eq!(full.restart, policy);
        let health = full.health.unwrap();
        assert_eq!((health.port, health.path.as_deref(), health.failure_threshold), (8080, Some("/"), 3));
        assert_eq!((health.initial_delay_ms, health.interval_ms, health.timeout_ms), (5000, 1000, 500));
        let check = managed(r#""health_check":{"type":"tcp","port":1,"interval_ms":9,"path":null}"#);
        assert_eq!(check.restart.policy, Policy::Never);
        assert_eq!(check.health.map(|health| (health.path, health.interval_ms)), Some((None, 9)));
    }

    #[test]
    fn error_sentences_name_the_field() {
        for (body, part) in [
            (r#"{}"#, "missing field `command`"),
            (r#"{"command":null}"#, "`command`"),
            (r#"{"command":""}"#, "`command` must not be empty"),
            (r#"{"command":"a\u0000"}"#, "`command` must not contain a NUL"),
            (r#"{"command":"a","args":"b"}"#, "`args`"),
            (r#"{"command":"a","args":["b",1]}"#, "`args[1]`"),
            (r#"{"command":"a","env":["A=1"]}"#, "`env`"),
            (r#"{"command":"a","env":{"A":1}}"#, "`env.A`"),
            (r#"{"command":"a","env":{"A=":""}}"#, "`env`"),
            (r#"{"command":"a","env":{"":"1"}}"#, "`env`"),
            (r#"{"command":"a","env":{"export C":"3"}}"#, "the name \"export C\" must not contain white space"),
            (r#"{"command":"a","env":{"A\n":"3"}}"#, "`env"),
            (r#"{"command":"a","working_dir":""}"#, "`working_dir`"),
            (r#"{"command":"a","stdin_mode":"open"}"#, "`stdin_mode`"),
            (
                r#"{"command":"a","stdout_mode":"pipe"}"#,
                "`stdout_mode`: must be one of `capture`, `discard`, not the string \"pipe\"",
            ),
            (r#"{"command":"a","leftovers":"end"}"#, "`leftovers`: must be one of `keep`, `kill`"),
            (r#"{"command":"a","limits":5}"#, "`limits`: must be an object, not 5"),
            (
                r#"{"command":"a","limits":{"cpus":0}}"#,
                "`limits.cpus`: must be a number of CPUs of at least 0.01, not 0",
            ),
            (r#"{"command":"a","limits":{"memory_bytes":"1M"}}"#, "`limits.memory_bytes`"),
            (r#"{"command":"a","no_new_privs":1}"#, "`no_new_privs`: must be true or false, not 1"),
            (r#"{"command":"a","name":""}"#, "`name`"),
            (r#"{"command":"a","name":"12"}"#, "`name`"),
            (r#"{"command":"a","name":"a/b"}"#, "`name`"),
            (r#"{"command":"a","name":"."}"#, "`name` must not be `.` or `..`"),
            (r#"{"command":"a","name":".."}"#, "`name` must not be `.` or `..`"),
            (r#"{"command":"a","restart":"always"}"#, "`restart`"),
            (r#"{"command":"a","restart":{"policy":"sometimes"}}"#, "`restart.policy`"),
            (r#"{"command":"a","restart":{"max_restarts":-1}}"#, "`restart.max_restarts`"),
            (r#"{"command":"a","restart":{"max_backoff_ms":1e-3}}"#, "`restart.max_backoff_ms`"),
            (r#"{"command":"a","stop_grace_ms":86400001}"#, "`stop_grace_ms`"),
            (r#"{"command":"a","health_check":{"type":"tcp"}}"#, "missing field `port`"),
            (r#"{"command":"a","health_check":{"type":"udp","port":1}}"#, "`health_check.type`"),
            (r#"{"command":"a","health_check":{"type":"tcp","port":0}}"#, "`health_check.port`"),
            (r#"{"command":"a","health_check":{"type":"tcp","port":70000}}"#, "from 1 to 65535"),
            (r#"{"command":"a","health_check":{"type":"tcp","port":1,"path":"/"}}"#, "`health_check.path`"),
            (r#"{"command":"a","health_check":{"type":"http","port":1,"path":"x"}}"#, "`health_check.path`"),
            (r#"{"command":"a","health_check":{"type":"tcp","port":1,"interval_ms":0}}"#, "`health_check.interval_ms`"),
            (r#"{"command":"a","health_check":{"type":"tcp","port":1,"failure_threshold":0}}"#, "failure_threshold`"),
        ] {
            let sentence = spec(body).unwrap_err();
            assert!(sentence.contains(part), "{body}: {sentence}");
        }
    }
}
