//! The client of an OCI engine that serves the Docker Engine API: Podman (4 or newer) or Docker (20 or newer).
//!
//! | file | what |
//! |---|---|
//! | `url` | where the engine listens |
//! | `transport` | the connection to the engine's socket |
//! | `client` | one request and its answer: the version of the API, time limits, errors |
//! | `wire` | the JSON of the API |
//! | `containers`, `images`, `networks`, `events` | a file for each group of calls |
//! | `quota` | whether the size of a container's file system can be limited |

mod client;
mod containers;
mod events;
mod images;
mod networks;
mod quota;
#[cfg(test)]
mod tests;
mod transport;
mod url;
mod wire;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use client::Engine;
pub(crate) use url::EngineUrl;

/// Why the engine has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// There is no connection, or it was lost before the whole answer was there.
    #[error("the engine at {url} cannot be reached: {cause}")]
    Unreachable { url: String, cause: String },
    /// The engine has not answered the request in time. It may still do what it was asked for.
    #[error("the engine has not answered {1} within {0:?}")]
    TimedOut(Duration, String),
    /// 404: no such container, image or network.
    #[error("{0}")]
    NotFound(String),
    /// 409: a name is taken, the state does not allow it, or an image is in use.
    #[error("{0}")]
    Conflict(String),
    /// Another refusal, with the sentence of the engine.
    #[error("the engine has refused: {message} (status {status})")]
    Refused { status: u16, message: String },
    /// The caller's tar archive could not be read to its end.
    #[error("the archive cannot be read: {0}")]
    Source(#[source] io::Error),
    /// The answer is not what the API describes.
    #[error("the engine's answer to {request} is not valid: {cause}")]
    Invalid { request: String, cause: String },
}

/// What the engine says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EngineInfo {
    /// For messages: `Podman Engine 4.3.1`.
    pub(crate) name: String,
    /// The architecture in the words of images: `amd64`.
    pub(crate) architecture: String,
    /// Whether the engine runs without root, so that its containers' addresses cannot be reached from outside.
    pub(crate) is_rootless: bool,
    pub(crate) cpus: u32,
    pub(crate) memory_bytes: u64,
    /// Names of OCI runtimes.
    pub(crate) runtimes: Vec<String>,
    /// The runtime of containers that name none.
    pub(crate) default_runtime: String,
    /// Whether it applies the limits of memory and of CPUs.
    pub(crate) limits_memory: bool,
    pub(crate) limits_cpus: bool,
    /// Whether the size of a container's file system can be limited.
    pub(crate) limits_disk: bool,
    /// Size of the file system in which containers are, in MiB; None if it cannot be seen from here.
    pub(crate) disk_mb: Option<u64>,
}

/// What a new container is made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerSpec {
    pub(crate) name: String,
    pub(crate) image: String,
    /// The program that runs as PID 1, and its arguments. What the image names is not used. It runs as root.
    pub(crate) command: Vec<String>,
    pub(crate) labels: Vec<(String, String)>,
    /// Files of this machine that are mounted read-only: the path here, and the path in the container.
    pub(crate) read_only_mounts: Vec<(PathBuf, String)>,
    /// Directories of the container that are in memory.
    pub(crate) tmpfs: Vec<String>,
    /// 1,000 is one CPU.
    pub(crate) milli_cpus: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) disk_bytes: Option<u64>,
    /// A network of the engine, by name; the default one if None.
    pub(crate) network: Option<String>,
    /// A port that is made reachable on 127.0.0.1, at a port that the engine chooses.
    pub(crate) published_port: Option<u16>,
    /// `NAME`, soft limit, hard limit.
    pub(crate) ulimits: Vec<(String, u64, u64)>,
    /// An OCI runtime, by name; the engine's default if None.
    pub(crate) runtime: Option<String>,
    pub(crate) hostname: Option<String>,
}

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerState {
    Created,
    Running,
    Paused,
    /// Its PID 1 has ended.
    Exited,
    /// Any other state: it is being removed, or is broken.
    Other,
}

/// What the engine knows of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: ContainerState,
    /// PID 1 of the container, as the engine's machine numbers it; None if it does not run.
    pub(crate) pid: Option<i32>,
    /// The exit status of PID 1, once it has ended.
    pub(crate) exit_code: Option<i64>,
    pub(crate) is_oom_killed: bool,
    /// Its address in its network, while it runs.
    pub(crate) address: Option<IpAddr>,
    /// The port on 127.0.0.1 of [`ContainerSpec::published_port`].
    pub(crate) published_at: Option<u16>,
    pub(crate) labels: Vec<(String, String)>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    pub(crate) architecture: String,
    pub(crate) size_bytes: u64,
    pub(crate) labels: Vec<(String, String)>,
}

/// Something that has happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerEvent {
    /// Its id.
    pub(crate) container: String,
    pub(crate) name: String,
    /// `create`, `start`, `die`, `pause`, `unpause`, `remove` and others.
    pub(crate) action: String,
    /// Of `die`: the exit status of PID 1.
    pub(crate) exit_code: Option<i64>,
}
