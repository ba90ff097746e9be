//! The interface between the API and the program that serves it: the report of the boot, and the shutdown.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::error::SpecError;
use crate::model::Pid;

/// The program that serves the API: how it booted, and how to shut it down.
pub trait SystemControl: fmt::Debug + Send + Sync {
    /// What the boot has done so far, for `GET /boot`.
    fn boot(&self) -> BootReport;

    /// Begins the shutdown, for `POST /shutdown`, without waiting for it. `grace` is the time that processes get to
    /// end; by default the program's own.
    ///
    /// # Errors
    /// If this program cannot do `action`, with a sentence that says which actions it can do.
    fn shut_down(&self, action: EndAction, grace: Option<Duration>) -> Result<(), SpecError>;
}

/// What a boot has done.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BootReport {
    /// The steps that prepared the system, in their order.
    pub steps: Vec<BootStep>,
    /// The services that were started from files, in their order.
    pub services: Vec<BootService>,
}

/// A step of a boot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BootStep {
    /// What the step prepared.
    pub name: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// What it did or found, or why it failed.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// A service that a file describes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BootService {
    /// Name of the file.
    pub file: String,
    /// Whether the service was started from the present content of the file.
    pub ok: bool,
    /// What was done, or why it was not started.
    pub detail: String,
    /// PID of its first run.
    pub pid: Option<Pid>,
}

/// What happens to the system once all processes have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndAction {
    /// The machine is powered off.
    PowerOff,
    /// The machine reboots.
    Reboot,
    /// The machine is halted.
    Halt,
    /// The program exits.
    Exit,
}
