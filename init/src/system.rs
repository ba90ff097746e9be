//! The program's side of the API: shows the report of the boot, and shuts down.

use std::time::Duration;

use crossbeam_channel::Sender;
use tl_supervisor::SpecError;
use tl_supervisor::http::{BootReport, EndAction, SystemControl};

use crate::event::Event;
use crate::report::Report;
use crate::role::Role;

/// Gives the API the boot report, and passes its shutdown requests to the main thread.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) role: Role,
    pub(crate) report: Report,
    pub(crate) sender: Sender<Event>,
}

impl SystemControl for System {
    fn boot(&self) -> BootReport {
        self.report.so_far()
    }

    fn shut_down(&self, action: EndAction, grace: Option<Duration>) -> Result<(), SpecError> {
        let (is_valid, problem) = match self.role {
            Role::Machine => (action != EndAction::Exit, "must be `poweroff`, `reboot` or `halt`: this is a machine"),
            Role::Container | Role::Process => (action == EndAction::Exit, "must be `exit`: this is not a machine"),
        };
        if !is_valid {
            return Err(SpecError::new("action", problem));
        }
        let _ = self.sender.send(Event::ShutDown(action, grace));
        Ok(())
    }
}
