//! The OOM thread: reports kills by the kernel's out-of-memory killer in a cgroup.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use tl_os::cgroup::oom_kills;
use tl_os::poll::{Events, Waker, wait};
use tl_os::thread;

/// Size of the buffer for `memory.events`, in bytes. The file is much shorter.
const BUFFER_SIZE: usize = 4096;

/// A handle to the thread, which ends and is joined on drop.
#[derive(Debug)]
pub(crate) struct OomThread {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl OomThread {
    /// Watches `events`, the open `memory.events` of a cgroup (the kernel's cgroup-v2.rst), and calls `on_kill` when
    /// its count of OOM kills has grown. The kernel wakes the thread at most once per 10 ms.
    ///
    /// # Errors
    /// If the system cannot create another thread or descriptor.
    pub(crate) fn start(events: File, on_kill: impl Fn() + Send + 'static) -> io::Result<OomThread> {
        let waker = Arc::new(Waker::new()?);
        let woken = Arc::clone(&waker);
        let mut known = kills_in(&events)?;
        let body = move || loop {
            // A change since the last read is reported as POLLPRI. After the cgroup was removed, reading fails.
            let fds = [(events.as_fd(), Events::URGENT), (woken.as_fd(), Events::READ)];
            let [_, wake] = thread::idle(|| wait(fds, None))?;
            if wake.any(Events::READ) {
                return Ok(());
            }
            let Ok(kills) = kills_in(&events) else { return Ok(()) };
            if kills > known {
                known = kills;
                on_kill();
            }
        };
        // An error needs no handling: without the thread, OOM kills are only attributed less precisely.
        let thread = thread::spawn_persistent("oom", body)?;
        Ok(OomThread { waker, thread: Some(thread) })
    }
}

/// The number of OOM kills that `events` reports.
fn kills_in(events: &File) -> io::Result<u64> {
    let mut buffer = [0; BUFFER_SIZE];
    let length = events.read_at(&mut buffer, 0)?;
    Ok(oom_kills(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default())))
}

impl Drop for OomThread {
    fn drop(&mut self) {
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
