//! The events that the main thread waits for.

use std::time::Duration;

use tl_os::signal_thread::Received;
use tl_os::wait::TraceStop;
use tl_supervisor::http::EndAction;

use crate::main_process;

/// What the main thread is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// A signal was received.
    Signal(Received),
    /// `POST /shutdown` asks for this action, with this grace.
    ShutDown(EndAction, Option<Duration>),
    /// The main process has ended, or could not be started.
    MainProcess(main_process::End),
    /// An orphan that has made this thread its tracer has stopped.
    TraceStop(TraceStop),
}
