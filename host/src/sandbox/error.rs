//! What can go wrong with sandboxes: a variant for each kind, which `api` maps to a status and a code.

use std::io;
use std::path::PathBuf;

use crate::engine::EngineError;
use crate::sandbox::model::Status;
use crate::sandbox::name::InvalidName;

/// Why an operation has not been done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// There is none with this id or name, or it is terminated.
    #[error("there is no sandbox {0:?}")]
    Unknown(String),
    /// The engine has no image with this name.
    #[error("there is no image {0:?}: the engine on this machine does not have it")]
    UnknownImage(String),
    /// There is none with this id or name.
    #[error("there is no snapshot {0:?}")]
    UnknownSnapshot(String),
    /// The image cannot run here.
    #[error(
        "the image {image:?} is for the architecture {image_architecture}, and this machine has {machine_architecture}"
    )]
    WrongArchitecture { image: String, image_architecture: String, machine_architecture: String },
    /// The name does not follow the rules.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// Another sandbox or snapshot has the name.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// The operation is not possible in this state.
    #[error("the sandbox {id:?} is {}: it cannot be {operation}", .status.as_str())]
    InvalidState { id: String, status: Status, operation: &'static str },
    /// Only sandboxes with a name can be suspended and resumed.
    #[error("the sandbox {0:?} has no name: only a named sandbox can be suspended and resumed; give it a name first")]
    Unnamed(String),
    /// Another operation on the same sandbox has not ended in time.
    #[error("another operation on the sandbox {0:?} has not ended yet")]
    Busy(String),
    /// The sandbox could not be started; it is removed.
    #[error("the sandbox {id:?} could not be started: {details}")]
    Failed { id: String, details: String },
    /// The maximum number of sandboxes exists.
    #[error("there are {0} sandboxes, which is the maximum")]
    TooMany(usize),
    /// The maximum number of snapshots exists.
    #[error("there are {0} snapshots, which is the maximum")]
    TooManySnapshots(usize),
    /// The number of copies is not possible.
    #[error("`times` is {times}: it must be between 1 and {max}")]
    InvalidTimes { times: u32, max: u32 },
    /// `stop --all` has begun.
    #[error("tl-host is being stopped: it makes no new sandboxes")]
    Stopping,
    /// After `stop --all`.
    #[error("{0} sandboxes could not be ended: the log says why")]
    NotEnded(usize),
    /// The engine cannot be reached, or has refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The state directory cannot be written.
    #[error("the state directory: {0}")]
    Disk(#[from] io::Error),
    /// There is no thread left.
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
    /// Too many requests wait for their turn.
    #[error("{0} suspensions and resumptions are waiting, which is the maximum")]
    TooManyWaiting(usize),
}

/// Why the sandboxes cannot be managed at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Another tl-host has the same state directory.
    #[error("another tl-host uses the state directory {}", .0.display())]
    Locked(PathBuf),
    /// The state directory cannot be used.
    #[error("the state directory {}: {cause}", .path.display())]
    Disk { path: PathBuf, cause: io::Error },
    /// Others could read or change what is in it.
    #[error(
        "the state directory {} can be used by other users or belongs to one; chmod 700 it if it is for tl-host alone",
        .0.display()
    )]
    NotPrivate(PathBuf),
    /// It has files, and none of them is of tl-host.
    #[error("the state directory {} has files that are not of tl-host: name an empty directory, or none yet", .0.display())]
    NotOurs(PathBuf),
    /// The engine cannot be told the paths of files in it.
    #[error("the state directory {} is not UTF-8, and the engine takes no other path", .0.display())]
    NotUtf8(PathBuf),
    /// The machine does not say in which boot it is.
    #[error("/proc/sys/kernel/random/boot_id: {0}")]
    Boot(io::Error),
    /// The engine cannot be asked.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// There is no thread left.
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
}
