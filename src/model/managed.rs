//! [`ManagedSpec`]: when a process is restarted, and how its health is checked.

use std::time::Duration;

use serde::Serialize;

use crate::error::SpecError;

/// The longest duration in a spec, in milliseconds: one day.
pub(crate) const MAX_MS: u64 = 86_400_000;

/// When a managed process is restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Hash)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Policy {
    /// Never.
    Never,
    /// After an exit code other than 0, a signal, an out-of-memory kill or a failed health check.
    #[default]
    OnFailure,
    /// After every exit, those after a failed health check included.
    Always,
}

/// When a managed process is restarted, and how long each restart waits.
///
/// The first wait is `initial_backoff_ms`; it doubles with each further restart, up to `max_backoff_ms`. A run that lasts
/// for 10 s or `max_backoff_ms`, whichever is longer, and that is healthy for that time if it is checked, begins anew:
/// the next wait is the first one again, and `max_restarts` counts from 0.
///
/// ```
/// use tl_supervisor::{ManagedSpec, Policy, ProcessSpec, RestartPolicy};
///
/// let mut restart = RestartPolicy::new(Policy::Always);
/// restart.max_restarts = Some(5);
/// restart.initial_backoff_ms = 100;
/// let mut managed = ManagedSpec::new(Policy::Always);
/// managed.restart = restart;
/// ProcessSpec::command("my-service").managed(managed).build()?;
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
#[non_exhaustive]
pub struct RestartPolicy {
    /// When to restart.
    pub policy: Policy,
    /// Number of restarts in a row after which the process stays stopped; None for no limit.
    pub max_restarts: Option<u32>,
    /// Wait before the first restart, in milliseconds; at most one day.
    pub initial_backoff_ms: u64,
    /// Longest wait, in milliseconds; at most one day.
    pub max_backoff_ms: u64,
}

impl RestartPolicy {
    /// `policy` with the defaults: no limit, and a wait from 500 ms to 30 s.
    pub fn new(policy: Policy) -> RestartPolicy {
        RestartPolicy { policy, max_restarts: None, initial_backoff_ms: 500, max_backoff_ms: 30_000 }
    }

    fn validate(&self) -> Result<(), SpecError> {
        at_most_a_day("restart.initial_backoff_ms", self.initial_backoff_ms.into())?;
        at_most_a_day("restart.max_backoff_ms", self.max_backoff_ms.into())
    }
}

impl From<Policy> for RestartPolicy {
    fn from(policy: Policy) -> RestartPolicy {
        RestartPolicy::new(policy)
    }
}

/// How a health check probes a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HealthKind {
    /// `GET path`, which must be answered with a status from 200 to 399.
    Http,
    /// A TCP connection, which must be accepted.
    Tcp,
}

/// A health check of a managed process: probes of a port on 127.0.0.1.
///
/// ```
/// use tl_supervisor::{HealthCheck, ManagedSpec, Policy, ProcessSpec};
///
/// let mut check = HealthCheck::http(8080, "/healthz");
/// check.interval_ms = 250;
/// let mut managed = ManagedSpec::new(Policy::Always);
/// managed.health = Some(check);
/// ProcessSpec::command("my-service").managed(managed).build()?;
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Hash)]
#[non_exhaustive]
pub struct HealthCheck {
    /// Kind of the probe.
    #[serde(rename = "type")]
    pub kind: HealthKind,
    /// Port from 1 to 65535 on 127.0.0.1, or on `[::1]` if nothing listens on 127.0.0.1.
    pub port: u16,
    /// Path of an HTTP check, beginning with `/`; None for TCP.
    pub path: Option<String>,
    /// Time from the start of the process to the first probe, in milliseconds; at most one day.
    pub initial_delay_ms: u64,
    /// Time from one probe to the next, in milliseconds; at least 1, at most one day.
    pub interval_ms: u64,
    /// Timeout of one probe, in milliseconds; at least 1, at most one day.
    pub timeout_ms: u64,
    /// Number of failed probes in a row that make the process unhealthy; at least 1.
    pub failure_threshold: u32,
}

impl HealthCheck {
    /// An HTTP check of `path` with the defaults: the first probe after 5 s, then one per second, each with a timeout
    /// of 500 ms, and unhealthy after 3 failures in a row.
    pub fn http(port: u16, path: impl Into<String>) -> HealthCheck {
        HealthCheck { kind: HealthKind::Http, path: Some(path.into()), ..HealthCheck::tcp(port) }
    }

    /// A TCP check with the same defaults as [`HealthCheck::http`].
    pub fn tcp(port: u16) -> HealthCheck {
        HealthCheck {
            kind: HealthKind::Tcp,
            port,
            path: None,
            initial_delay_ms: 5000,
            interval_ms: 1000,
            timeout_ms: 500,
            failure_threshold: 3,
        }
    }

    fn validate(&self) -> Result<(), SpecError> {
        if self.port == 0 {
            return Err(SpecError::new("health_check.port", "must be a whole number from 1 to 65535"));
        }
        match (self.kind, &self.path) {
            (HealthKind::Tcp, Some(_)) => {
                return Err(SpecError::new("health_check.path", "is valid only with the type `http`"));
            }
            (HealthKind::Http, Some(path)) if !is_request_path(path) => {
                let rule = "must begin with `/` and not contain spaces, control characters or non-ASCII characters";
                return Err(SpecError::new("health_check.path", rule));
            }
            _ => {}
        }
        at_most_a_day("health_check.initial_delay_ms", self.initial_delay_ms.into())?;
        for (field, ms) in [("interval_ms", self.interval_ms), ("timeout_ms", self.timeout_ms)] {
            let field = format!("health_check.{field}");
            at_most_a_day(&field, ms.into())?;
            if ms == 0 {
                return Err(SpecError::new(field, "must be at least 1"));
            }
        }
        if self.failure_threshold == 0 {
            return Err(SpecError::new("health_check.failure_threshold", "must be at least 1"));
        }
        Ok(())
    }
}

/// Makes a process managed: it can be addressed by name, restarted automatically, and health-checked.
///
/// ```
/// use tl_supervisor::{ManagedSpec, Policy, ProcessSpec};
///
/// let managed = ManagedSpec::new(Policy::OnFailure).named("web");
/// ProcessSpec::command("my-service").managed(managed).build()?;
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ManagedSpec {
    /// Name that the process can be addressed by, unique among the managed processes that are not stopped.
    pub name: Option<String>,
    /// Its restart policy.
    pub restart: RestartPolicy,
    /// Its health check; None for none.
    pub health: Option<HealthCheck>,
    /// Time from SIGTERM to SIGKILL when it is stopped or restarted; at most one day.
    pub stop_grace: Duration,
}

impl ManagedSpec {
    /// A managed process without a name or a health check, with a stop grace of 10 s.
    pub fn new(restart: impl Into<RestartPolicy>) -> ManagedSpec {
        ManagedSpec { name: None, restart: restart.into(), health: None, stop_grace: Duration::from_secs(10) }
    }

    /// Sets the name.
    pub fn named(mut self, name: impl Into<String>) -> ManagedSpec {
        self.name = Some(name.into());
        self
    }

    pub(super) fn validate(&self) -> Result<(), SpecError> {
        if let Some(name) = &self.name {
            if name.is_empty() || name.contains('/') || name.bytes().all(|b| b.is_ascii_digit()) {
                return Err(SpecError::new("name", "must not be empty, consist of digits only, or contain `/`"));
            }
            // HTTP clients remove these segments from a path (RFC 3986, section 5.2.4), so no request could address the
            // process.
            if matches!(name.as_str(), "." | "..") {
                return Err(SpecError::new("name", "must not be `.` or `..`"));
            }
            if name.contains('\0') {
                return Err(SpecError::new("name", "must not contain a NUL character"));
            }
        }
        at_most_a_day("stop_grace_ms", self.stop_grace.as_millis())?;
        self.restart.validate()?;
        self.health.as_ref().map_or(Ok(()), HealthCheck::validate)
    }
}

/// Whether `path` is valid in a request line (RFC 9112, section 3).
pub(crate) fn is_request_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic())
}

fn at_most_a_day(field: &str, ms: u128) -> Result<(), SpecError> {
    if ms > u128::from(MAX_MS) {
        return Err(SpecError::new(field, format!("must be at most {MAX_MS} ms, a day")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(field: &str, change: impl FnOnce(&mut ManagedSpec, &mut HealthCheck)) {
        let (mut managed, mut check) = (ManagedSpec::new(Policy::Always), HealthCheck::http(80, "/"));
        assert_eq!(managed.validate(), Ok(()));
        assert_eq!(check.validate(), Ok(()));
        change(&mut managed, &mut check);
        managed.health = Some(check);
        assert_eq!(managed.validate().err().map(|error| error.field).as_deref(), Some(field));
    }

    #[test]
    fn every_duration_and_count_is_bounded() {
        refused("stop_grace_ms", |managed, _| managed.stop_grace = Duration::MAX);
        refused("stop_grace_ms", |managed, _| managed.stop_grace = Duration::from_millis(MAX_MS + 1));
        refused("restart.initial_backoff_ms", |managed, _| managed.restart.initial_backoff_ms = u64::MAX);
        refused("restart.max_backoff_ms", |managed, _| managed.restart.max_backoff_ms = MAX_MS + 1);
        refused("health_check.port", |_, check| check.port = 0);
        refused("health_check.initial_delay_ms", |_, check| check.initial_delay_ms = u64::MAX);
        refused("health_check.interval_ms", |_, check| check.interval_ms = u64::MAX);
        refused("health_check.interval_ms", |_, check| check.interval_ms = 0);
        refused("health_check.timeout_ms", |_, check| check.timeout_ms = u64::MAX);
        refused("health_check.timeout_ms", |_, check| check.timeout_ms = 0);
        refused("health_check.failure_threshold", |_, check| check.failure_threshold = 0);
    }

    #[test]
    fn names_and_paths_that_cannot_be_sent_in_a_request_are_rejected() {
        for name in ["", "a/b", "42", ".", "..", "a\0b"] {
            refused("name", |managed, _| managed.name = Some(name.to_owned()));
        }
        for path in ["", "x", "/a b", "/\n"] {
            refused("health_check.path", |_, check| check.path = Some(path.to_owned()));
        }
        refused("health_check.path", |_, check| check.kind = HealthKind::Tcp);
    }
}
