//! The OOM thread: says when the kernel has killed something in a cgroup for want of memory.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use tl_os::cgroup::oom_kills;
use tl_os::poll::{Events, Waker, wait};
use tl_os::thread;

/// Longer than the file ever is.
const LENGTH: usize = 4096;

/// The thread; ends and is joined on drop.
#[derive(Debug)]
pub(crate) struct OomThread {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl OomThread {
    /// Watches `events`, a `memory.events` (cgroup-v2.rst), and calls `notice` when there were more kills. It is woken by
    /// the kernel, at most every 10 ms.
    ///
    /// # Errors
    /// When there is no thread or descriptor for it.
    pub(crate) fn start(events: File, notice: impl Fn() + Send + 'static) -> io::Result<OomThread> {
        let waker = Arc::new(Waker::new()?);
        let woken = Arc::clone(&waker);
        let mut known = kills_in(&events)?;
        let body = move || loop {
            // A change of the file is POLLPRI from its last read on; after the cgroup's end reading it fails.
            let [_, told] = wait([(events.as_fd(), Events::URGENT), (woken.as_fd(), Events::READ)], None)?;
            if told.any(Events::READ) {
                return Ok(());
            }
            let Ok(kills) = kills_in(&events) else { return Ok(()) };
            if kills > known {
                known = kills;
                notice();
            }
        };
        // Without it a kill for want of memory is only told less exactly.
        let thread = thread::spawn("oom", body, || {})?;
        Ok(OomThread { waker, thread: Some(thread) })
    }
}

fn kills_in(events: &File) -> io::Result<u64> {
    let mut buffer = [0; LENGTH];
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
