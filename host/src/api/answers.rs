//! The bodies of answers, in the shapes of the clients' models.
//!
//! A client fails on a missing `disk_mb`, on a `null` where it expects a list or a truth value, and on an answer that has
//! both `id` and `sandbox_id`.

use serde::Serialize;
use tl_supervisor::http::message::{ApiError, Response};

use crate::api::create::ResourcesInfo;
use crate::sandbox::model::{Millis, Record, Snapshot, Status};

/// Where clients reach a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Urls {
    /// The proxy. Clients name the sandbox in `Host`.
    pub(crate) sandbox: String,
    /// The proxy by a name to which clients prepend `PORT-ID.`.
    pub(crate) ingress: String,
}

/// A sandbox, in answers about one that exists.
#[derive(Debug, Serialize)]
pub(crate) struct Info<'r> {
    id: &'r str,
    namespace: &'r str,
    name: Option<&'r str>,
    status: Status,
    pending_reason: Option<&'static str>,
    image: &'r str,
    resources: ResourcesInfo,
    /// 0 if the sandbox is not ended by a timeout.
    timeout_secs: u64,
    entrypoint: &'r [String],
    network_policy: Policy,
    /// The name of `network_policy` in older clients.
    network: Policy,
    exposed_ports: &'r [u16],
    allow_unauthenticated_access: bool,
    created_at: Millis,
    terminated_at: Option<Millis>,
    termination_reason: Option<&'static str>,
    error_details: Option<Details<'r>>,
    auto_resume: bool,
    sandbox_url: &'r str,
    ingress_endpoint: &'r str,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Policy {
    allow_internet_access: bool,
    allow_out: [&'static str; 0],
    deny_out: [&'static str; 0],
}

#[derive(Debug, Serialize)]
struct Details<'r> {
    message: &'r str,
}

impl<'r> Info<'r> {
    pub(crate) fn new(record: &'r Record, urls: &'r Urls, whole_disk_mb: u64) -> Info<'r> {
        let spec = &record.spec;
        let termination = record.termination.as_ref();
        let allow_internet_access = spec.network_policy.allow_internet_access;
        let policy = Policy { allow_internet_access, allow_out: [], deny_out: [] };
        Info {
            id: &record.id,
            namespace: &record.namespace,
            name: spec.name.as_deref(),
            status: record.status,
            pending_reason: pending_reason(record.status),
            image: &spec.image,
            resources: ResourcesInfo::new(spec.resources, whole_disk_mb),
            timeout_secs: spec.timeout_secs.unwrap_or(0),
            entrypoint: &spec.entrypoint,
            network_policy: policy,
            network: policy,
            exposed_ports: &spec.exposed_ports,
            allow_unauthenticated_access: spec.allow_unauthenticated_access,
            created_at: record.created_at,
            terminated_at: termination.map(|termination| termination.at),
            termination_reason: termination.map(|termination| termination.reason.as_str()),
            error_details: termination.map(|termination| Details { message: &termination.details }),
            auto_resume: true,
            sandbox_url: &urls.sandbox,
            ingress_endpoint: &urls.ingress,
        }
    }
}

/// A sandbox is pending while its container is made and started, and for no other reason.
fn pending_reason(status: Status) -> Option<&'static str> {
    (status == Status::Pending).then_some("waiting_for_container")
}

/// A sandbox that was made.
#[derive(Debug, Serialize)]
pub(crate) struct Created<'r> {
    sandbox_id: &'r str,
    status: Status,
    sandbox_url: &'r str,
    name: Option<&'r str>,
}

impl<'r> Created<'r> {
    pub(crate) fn new(record: &'r Record, urls: &'r Urls) -> Created<'r> {
        Created {
            sandbox_id: &record.id,
            status: record.status,
            sandbox_url: &urls.sandbox,
            name: record.spec.name.as_deref(),
        }
    }
}

/// A sandbox that is being made, for a client that does not wait.
#[derive(Debug, Serialize)]
pub(crate) struct Pending<'r> {
    sandbox_id: &'r str,
    state: Status,
    pending_reason: Option<&'static str>,
    sandbox_url: &'r str,
    name: Option<&'r str>,
}

impl<'r> Pending<'r> {
    pub(crate) fn new(record: &'r Record, urls: &'r Urls) -> Pending<'r> {
        Pending {
            sandbox_id: &record.id,
            state: record.status,
            pending_reason: pending_reason(record.status),
            sandbox_url: &urls.sandbox,
            name: record.spec.name.as_deref(),
        }
    }
}

/// A sandbox that was not ready before its client stopped waiting. It goes on being made.
#[derive(Debug, Serialize)]
pub(crate) struct TimedOut<'r> {
    sandbox_id: &'r str,
    status: &'static str,
    sandbox_url: &'r str,
    name: Option<&'r str>,
    error: &'static str,
    code: &'static str,
}

impl<'r> TimedOut<'r> {
    pub(crate) fn new(record: &'r Record, urls: &'r Urls) -> TimedOut<'r> {
        TimedOut {
            sandbox_id: &record.id,
            status: "timeout",
            sandbox_url: &urls.sandbox,
            name: record.spec.name.as_deref(),
            error: "the sandbox is not ready yet; it is still being made",
            code: "START_TIMED_OUT",
        }
    }
}

/// A sandbox that could not be started. Clients take its details from `error_details`; `error` and `code` are those of
/// every error.
#[derive(Debug, Serialize)]
pub(crate) struct Failed<'r> {
    sandbox_id: &'r str,
    status: &'static str,
    termination_reason: &'static str,
    error_details: Details<'r>,
    error: String,
    code: &'static str,
}

impl<'r> Failed<'r> {
    pub(crate) fn new(id: &'r str, details: &'r str) -> Failed<'r> {
        Failed {
            sandbox_id: id,
            status: "failed",
            termination_reason: "failed",
            error_details: Details { message: details },
            error: format!("the sandbox could not be started: {details}"),
            code: "START_FAILED",
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct List<'r> {
    pub(crate) sandboxes: Vec<Info<'r>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Copied<'r> {
    pub(crate) source_sandbox_id: &'r str,
    pub(crate) sandboxes: Vec<Created<'r>>,
}

/// A snapshot.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotInfo<'r> {
    id: &'r str,
    namespace: &'r str,
    name: Option<&'r str>,
    sandbox_id: &'r str,
    base_image: &'r str,
    status: &'static str,
    size_bytes: u64,
    snapshot_type: &'static str,
    created_at: Millis,
}

impl<'r> SnapshotInfo<'r> {
    pub(crate) fn new(snapshot: &'r Snapshot) -> SnapshotInfo<'r> {
        SnapshotInfo {
            id: &snapshot.id,
            namespace: &snapshot.namespace,
            name: snapshot.name.as_deref(),
            sandbox_id: &snapshot.sandbox_id,
            base_image: &snapshot.base_image,
            status: snapshot_status(snapshot),
            size_bytes: snapshot.size_bytes,
            snapshot_type: "filesystem",
            created_at: snapshot.created_at,
        }
    }
}

fn snapshot_status(snapshot: &Snapshot) -> &'static str {
    if snapshot.is_complete { "completed" } else { "in_progress" }
}

#[derive(Debug, Serialize)]
pub(crate) struct Snapshots<'r> {
    pub(crate) snapshots: Vec<SnapshotInfo<'r>>,
}

/// A snapshot that was made.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotCreated<'r> {
    snapshot_id: &'r str,
    status: &'static str,
}

impl<'r> SnapshotCreated<'r> {
    pub(crate) fn new(snapshot: &'r Snapshot) -> SnapshotCreated<'r> {
        SnapshotCreated { snapshot_id: &snapshot.id, status: snapshot_status(snapshot) }
    }
}

/// `{}`.
#[derive(Debug, Serialize)]
pub(crate) struct Empty {}

/// `value` as the body of a response.
pub(crate) fn json(status: u16, value: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(value).map_err(|error| ApiError::internal(format!("internal error: {error}")))?;
    Ok(Response::json(status, body))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sandbox::model::{NetworkPolicy, Reason, Resources, SandboxSpec, Termination};

    fn urls() -> Urls {
        Urls { sandbox: "http://127.0.0.1:9443".to_owned(), ingress: "http://localhost:9443".to_owned() }
    }

    fn record() -> Record {
        Record {
            id: "abcdefghijklmnopqrstu".to_owned(),
            namespace: "default".to_owned(),
            spec: SandboxSpec {
                name: Some("my-env".to_owned()),
                image: "debian".to_owned(),
                resources: Resources { cpus: 1.0, memory_mb: 1024, disk_mb: None },
                timeout_secs: None,
                entrypoint: Vec::new(),
                network_policy: NetworkPolicy { allow_internet_access: true },
                snapshot_id: None,
                exposed_ports: vec![8080],
                allow_unauthenticated_access: false,
            },
            status: Status::Running,
            created_at: 1_764_500_000_000,
            container: None,
            source: "debian".to_owned(),
            boot: String::new(),
            expires_at: None,
            time_left: None,
            returns_to: None,
            ending: None,
            termination: None,
        }
    }

    fn shown(value: &impl Serialize) -> Value {
        serde_json::to_value(value).unwrap()
    }

    #[test]
    fn a_running_sandbox_has_every_field_that_clients_need() {
        let right = json!({
            "id": "abcdefghijklmnopqrstu", "namespace": "default", "name": "my-env", "status": "running",
            "pending_reason": null, "image": "debian", "resources": {"cpus": 1.0, "memory_mb": 1024, "disk_mb": 5000, "ephemeral_disk_mb": 5000},
            "timeout_secs": 0, "entrypoint": [],
            "network_policy": {"allow_internet_access": true, "allow_out": [], "deny_out": []},
            "network": {"allow_internet_access": true, "allow_out": [], "deny_out": []}, "auto_resume": true,
            "exposed_ports": [8080], "allow_unauthenticated_access": false, "created_at": 1_764_500_000_000_u64,
            "terminated_at": null, "termination_reason": null, "error_details": null, "sandbox_url": "http://127.0.0.1:9443", "ingress_endpoint": "http://localhost:9443",
        });
        assert_eq!(shown(&Info::new(&record(), &urls(), 5000)), right);
    }

    #[test]
    fn a_terminated_sandbox_says_why() {
        let termination = Termination { at: 7, reason: Reason::Timeout, details: "its time was over".to_owned() };
        let record = Record { status: Status::Terminated, termination: Some(termination), ..record() };
        let info = shown(&Info::new(&record, &urls(), 0));
        assert_eq!((&info["status"], &info["terminated_at"]), (&json!("terminated"), &json!(7)));
        assert_eq!(
            (&info["termination_reason"], &info["error_details"]["message"]),
            (&json!("timeout"), &json!("its time was over"))
        );
    }

    #[test]
    fn a_pending_sandbox_has_a_state_instead_of_a_status() {
        let record = Record { status: Status::Pending, ..record() };
        let pending = shown(&Pending::new(&record, &urls()));
        assert_eq!((&pending["state"], pending.get("status")), (&json!("pending"), None));
        let created = shown(&Created::new(&record, &urls()));
        assert_eq!((&created["status"], created.get("state"), created.get("id")), (&json!("pending"), None, None));
    }

    #[test]
    fn a_failed_start_is_an_error_with_details() {
        let failed = shown(&Failed::new("x", "no such program"));
        assert_eq!((&failed["sandbox_id"], &failed["status"]), (&json!("x"), &json!("failed")));
        assert_eq!(failed["error_details"]["message"], "no such program");
        assert_eq!((failed["code"].as_str(), failed["error"].is_string()), (Some("START_FAILED"), true));
    }
}
