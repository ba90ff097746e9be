//! Records, specifications and states of sandboxes and snapshots, as plain data.

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970.
pub(crate) type Millis = u64;

/// The state of a sandbox, in the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Pending,
    Running,
    Suspending,
    Suspended,
    Snapshotting,
    Terminated,
}

impl Status {
    /// All of them, in the order of a sandbox's life.
    pub(crate) const ALL: [Status; 6] = [
        Status::Pending,
        Status::Running,
        Status::Suspending,
        Status::Suspended,
        Status::Snapshotting,
        Status::Terminated,
    ];

    /// The word of the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Suspending => "suspending",
            Status::Suspended => "suspended",
            Status::Snapshotting => "snapshotting",
            Status::Terminated => "terminated",
        }
    }
}

/// Limits of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resources {
    /// A number of CPUs, which may be a fraction.
    pub(crate) cpus: f64,
    /// In MiB.
    pub(crate) memory_mb: u64,
    /// In MiB; None if the file system is not limited.
    pub(crate) disk_mb: Option<u64>,
}

/// What a sandbox may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkPolicy {
    pub(crate) allow_internet_access: bool,
}

/// What a new sandbox is made from: a request that has been checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxSpec {
    pub(crate) name: Option<String>,
    /// The image as the client named it; the default image if it named none.
    pub(crate) image: String,
    pub(crate) resources: Resources,
    /// After so many seconds it is terminated or, if it has a name, suspended. None: never.
    pub(crate) timeout_secs: Option<u64>,
    /// The main process; empty if there is none.
    pub(crate) entrypoint: Vec<String>,
    pub(crate) network_policy: NetworkPolicy,
    /// The snapshot that it starts from.
    pub(crate) snapshot_id: Option<String>,
    pub(crate) exposed_ports: Vec<u16>,
    pub(crate) allow_unauthenticated_access: bool,
}

impl SandboxSpec {
    /// An unnamed sandbox of an image, with nothing that a request may ask for besides.
    pub(crate) fn plain(image: String, resources: Resources) -> SandboxSpec {
        SandboxSpec {
            name: None,
            image,
            resources,
            timeout_secs: None,
            entrypoint: Vec::new(),
            network_policy: NetworkPolicy { allow_internet_access: true },
            snapshot_id: None,
            exposed_ports: Vec::new(),
            allow_unauthenticated_access: false,
        }
    }
}

/// Why a sandbox is terminated, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    /// A client has deleted it, or `stop --all`.
    Deleted,
    /// Its time was over.
    Timeout,
    /// Its PID 1 has ended by itself.
    MainProcessEnded,
    /// The machine has been restarted.
    MachineRestarted,
    /// Its container was ended or removed from outside, or by the engine.
    Engine,
    /// It could not be started.
    Failed,
}

impl Reason {
    /// The word of the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reason::Deleted => "deleted",
            Reason::Timeout => "timeout",
            Reason::MainProcessEnded => "main_process_ended",
            Reason::MachineRestarted => "machine_restarted",
            Reason::Engine => "engine",
            Reason::Failed => "failed",
        }
    }
}

/// Why a sandbox is terminated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Termination {
    pub(crate) at: Millis,
    pub(crate) reason: Reason,
    /// A sentence.
    pub(crate) details: String,
}

/// A sandbox, as it is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    /// The namespace of the request that made it.
    pub(crate) namespace: String,
    pub(crate) spec: SandboxSpec,
    pub(crate) status: Status,
    pub(crate) created_at: Millis,
    /// The container; None before it exists and after it was removed.
    pub(crate) container: Option<String>,
    /// The image that the container is made from: that of the snapshot, or the one that the client named.
    pub(crate) source: String,
    /// The boot of the machine in which the container was started, from `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot: String,
    /// While it runs: when its time is over. None if it has no time limit.
    pub(crate) expires_at: Option<Millis>,
    /// While it is suspended: how much of its time is left. None if it has no time limit.
    pub(crate) time_left: Option<Millis>,
    /// While it is `snapshotting`: the status that it had before and returns to.
    pub(crate) returns_to: Option<Status>,
    /// Set before its end begins: why it is ended.
    pub(crate) ending: Option<Termination>,
    pub(crate) termination: Option<Termination>,
}

impl Record {
    /// Whether something has begun that an operation must end.
    pub(crate) fn is_in_transition(&self) -> bool {
        match self.status {
            Status::Pending | Status::Suspending | Status::Snapshotting => true,
            Status::Running | Status::Suspended => self.ending.is_some(),
            Status::Terminated => false,
        }
    }
}

/// What `PATCH` changes: what is None stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) name: Option<String>,
    pub(crate) exposed_ports: Option<Vec<u16>>,
    pub(crate) allow_unauthenticated_access: Option<bool>,
}

/// How far a suspension, resumption or removal has come when its caller returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    GoesOn,
}

/// A snapshot, as it is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) sandbox_id: String,
    /// The image of the sandbox that it was made from.
    pub(crate) base_image: String,
    /// The image that it is, by name.
    pub(crate) image: String,
    pub(crate) is_complete: bool,
    /// Whether it is not listed, and is removed once no sandbox that was made from it is left: the image of a copy, or
    /// a snapshot that was deleted while a sandbox used it.
    pub(crate) is_hidden: bool,
    pub(crate) size_bytes: u64,
    pub(crate) created_at: Millis,
    /// What the sandbox had: a sandbox that is made from the snapshot has the same unless the request says otherwise.
    pub(crate) resources: Resources,
    pub(crate) entrypoint: Vec<String>,
    #[serde(default)]
    pub(crate) exposed_ports: Vec<u16>,
    #[serde(default)]
    pub(crate) allow_unauthenticated_access: bool,
}
