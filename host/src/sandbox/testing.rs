//! Records for unit tests.

use crate::sandbox::model::{Record, Resources, SandboxSpec, Status};

/// A sandbox without a name, of the boot `boot`. Its id is made of `letter`.
pub(crate) fn record(letter: &str, status: Status) -> Record {
    Record {
        id: letter.repeat(21),
        namespace: "default".to_owned(),
        spec: SandboxSpec::plain("image".to_owned(), Resources { cpus: 1.0, memory_mb: 256, disk_mb: None }),
        status,
        created_at: 1,
        container: None,
        source: "image".to_owned(),
        boot: "boot".to_owned(),
        expires_at: None,
        time_left: None,
        returns_to: None,
        ending: None,
        termination: None,
    }
}
