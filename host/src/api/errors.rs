//! Statuses and codes of errors, each in one place.

use std::io::ErrorKind;

use tl_supervisor::http::message::ApiError;

use crate::api::routes::Missing;
use crate::engine::EngineError;
use crate::sandbox::error::SandboxError;

/// 401 `UNAUTHORIZED`.
pub(crate) fn unauthorized() -> ApiError {
    let message = "the API key is missing or wrong: send `Authorization: Bearer <API key>`";
    ApiError::new(401, "UNAUTHORIZED", message).header("WWW-Authenticate", "Bearer")
}

/// 501 `NOT_SUPPORTED`.
pub(crate) fn not_supported(message: impl Into<String>) -> ApiError {
    ApiError::new(501, "NOT_SUPPORTED", message)
}

/// 501 for file systems. `field` is what comes before the sentence.
pub(crate) fn no_file_systems(field: &str) -> ApiError {
    not_supported(format!("{field}file systems of the cloud cannot be mounted by tl-host; copy the files instead"))
}

/// 501 for what the API of the cloud has and this one has not.
pub(crate) fn missing(what: Missing) -> ApiError {
    match what {
        Missing::Pools => not_supported("tl-host has no pools; start it with --warm N to keep containers ready"),
        Missing::Archive => not_supported("tl-host has no archive; a terminated sandbox is listed for an hour"),
        Missing::FileSystems => no_file_systems(""),
    }
}

/// 404 `SANDBOX_NOT_FOUND`.
pub(crate) fn no_sandbox(id_or_name: &str) -> ApiError {
    SandboxError::Unknown(id_or_name.to_owned()).into()
}

/// 404 `SNAPSHOT_NOT_FOUND`.
pub(crate) fn no_snapshot(id_or_name: &str) -> ApiError {
    SandboxError::UnknownSnapshot(id_or_name.to_owned()).into()
}

impl From<SandboxError> for ApiError {
    fn from(error: SandboxError) -> ApiError {
        let message = error.to_string();
        match error {
            SandboxError::Unknown(_) => ApiError::new(404, "SANDBOX_NOT_FOUND", message),
            SandboxError::UnknownImage(_) => ApiError::new(404, "IMAGE_NOT_FOUND", message),
            SandboxError::UnknownSnapshot(_) => ApiError::new(404, "SNAPSHOT_NOT_FOUND", message),
            SandboxError::WrongArchitecture { .. } => ApiError::new(400, "WRONG_ARCHITECTURE", message),
            SandboxError::InvalidName(_) => ApiError::invalid(format!("`name`: {message}")),
            SandboxError::NameTaken(_) => ApiError::new(409, "NAME_TAKEN", message),
            SandboxError::InvalidState { .. } => ApiError::new(409, "INVALID_STATE", message),
            SandboxError::Unnamed(_) => ApiError::new(400, "UNNAMED_SANDBOX", message),
            SandboxError::Busy(_) => ApiError::new(409, "SANDBOX_BUSY", message),
            // The callers of `create` and `copy` get the answer of [`crate::api::answers::Failed`] instead.
            SandboxError::Failed { .. } => ApiError::new(500, "START_FAILED", message),
            SandboxError::TooMany(_) => ApiError::new(429, "TOO_MANY_SANDBOXES", message),
            SandboxError::TooManySnapshots(_) => ApiError::new(429, "TOO_MANY_SNAPSHOTS", message),
            SandboxError::InvalidTimes { .. } => ApiError::invalid(message),
            SandboxError::TooManyWaiting(_) | SandboxError::Thread(_) => ApiError::unavailable(message),
            SandboxError::NotEnded(_) => ApiError::new(500, "NOT_ENDED", message),
            SandboxError::Stopping => ApiError::new(503, "STOPPING", message),
            SandboxError::Engine(error) => of_engine(&error),
            SandboxError::Disk(error) if error.kind() == ErrorKind::StorageFull => {
                ApiError::new(507, "DISK_FULL", message)
            }
            SandboxError::Disk(_) => ApiError::internal(message),
        }
    }
}

fn of_engine(error: &EngineError) -> ApiError {
    let message = error.to_string();
    match error {
        // The clients repeat a call that gets 503.
        EngineError::Unreachable { .. } => ApiError::new(503, "ENGINE_UNAVAILABLE", message),
        // The engine may still do what it was asked for: the call must not be repeated.
        EngineError::TimedOut(..) => ApiError::new(500, "ENGINE_TIMEOUT", message),
        EngineError::NotFound(_)
        | EngineError::Conflict(_)
        | EngineError::Refused { .. }
        | EngineError::Source(_)
        | EngineError::Invalid { .. } => ApiError::new(500, "ENGINE_ERROR", message),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;
    use crate::sandbox::model::Status;

    #[test]
    fn each_kind_of_error_has_a_status_and_a_code() {
        let state = SandboxError::InvalidState { id: "x".to_owned(), status: Status::Terminated, operation: "resumed" };
        let refused = || EngineError::Refused { status: 500, message: "no".to_owned() };
        let gone = || EngineError::Unreachable { url: "x".to_owned(), cause: "x".to_owned() }.into();
        for (error, status, code) in [
            (SandboxError::Unknown("x".to_owned()), 404, "SANDBOX_NOT_FOUND"),
            (SandboxError::UnknownImage("x".to_owned()), 404, "IMAGE_NOT_FOUND"),
            (SandboxError::UnknownSnapshot("x".to_owned()), 404, "SNAPSHOT_NOT_FOUND"),
            (SandboxError::NameTaken("x".to_owned()), 409, "NAME_TAKEN"),
            (state, 409, "INVALID_STATE"),
            (SandboxError::Unnamed("x".to_owned()), 400, "UNNAMED_SANDBOX"),
            (EngineError::TimedOut(Duration::from_secs(1), "x".to_owned()).into(), 500, "ENGINE_TIMEOUT"),
            (gone(), 503, "ENGINE_UNAVAILABLE"),
            (refused().into(), 500, "ENGINE_ERROR"),
            (io::Error::from(ErrorKind::StorageFull).into(), 507, "DISK_FULL"),
            (io::Error::from(ErrorKind::PermissionDenied).into(), 500, "INTERNAL"),
        ] {
            let sentence = error.to_string();
            let error = ApiError::from(error);
            assert_eq!((error.status(), error.code()), (status, code));
            assert!(code == "INTERNAL" || error.to_string().contains("x") || sentence == error.to_string());
        }
    }
}
