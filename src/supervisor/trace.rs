//! [`TraceStop`]: a stopped process that only the main thread can resume.

use std::io;

use crate::model::Pid;
use tl_os::wait;

/// A process that has made this process its tracer, and is stopped: see
/// [`Builder::on_main_thread`](super::Builder::on_main_thread).
#[derive(Debug)]
#[must_use = "the process stays stopped until `resume` is called"]
pub struct TraceStop(pub(super) wait::TraceStop);

impl TraceStop {
    /// PID of the stopped process, or TID of its stopped thread.
    pub fn pid(&self) -> Pid {
        self.0.pid
    }

    /// Ends the tracing, so that the process goes on as if it had never asked for a tracer. To be called on the main thread.
    ///
    /// # Errors
    /// What `ptrace(2)` says: this is not the tracing thread, or the process has ended.
    pub fn resume(self) -> io::Result<()> {
        self.0.detach()
    }
}
