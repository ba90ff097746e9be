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

    /// Ends the tracing, so that the process continues without a tracer. Must be called on the main thread.
    ///
    /// # Errors
    /// The error of `ptrace(2)`: the calling thread is not the tracer, or the process has ended.
    pub fn resume(self) -> io::Result<()> {
        self.0.detach()
    }
}
