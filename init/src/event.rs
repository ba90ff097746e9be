//! The events that the main thread waits for.

use std::sync::Arc;
use std::task::Wake;
use std::time::Duration;

use crossbeam_channel::Sender;
use tl_os::signal_thread::Received;
use tl_supervisor::TraceStop;
use tl_supervisor::http::EndAction;

use crate::main_process;

/// An event for the main thread.
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
    /// The supervisor has answered the request to shut down.
    ShutdownAnswered,
    /// The supervisor thread has ended.
    SupervisorEnded,
}

/// A waker that sends [`Event::ShutdownAnswered`].
pub(crate) struct AnswerWaker(pub(crate) Sender<Event>);

impl Wake for AnswerWaker {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(Event::ShutdownAnswered);
    }
}
