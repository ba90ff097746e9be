//! The log writer thread: writes all logs, and removes the files of dropped logs. No other thread waits for writes to
//! the disk of the logs.
//!
//! The output thread sends it batches. While it writes one, the output thread fills another. When all are full, the
//! output thread stops reading pipes but continues everything else. So a dead disk stops only the capture of output:
//! exec reports, stdin, terminals and the ends of runs still work.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mio::Waker;

use super::batch::{Batch, Operation};
use super::message::Notice;
use crate::clock::wall;
use crate::logs::{Removal, Writing};
use crate::model::{Millis, RunKey, Stream};
use tl_os::thread;

/// Number of batches: one being filled, one being written, and the others in between. They are small, and the one that
/// was written last is filled next, so that the bytes of a batch are in the cache of the processor when it is written.
const BATCHES: usize = 8;
/// When idle, a batch that uses more than this many bytes returns its memory to the kernel.
const LARGE: usize = 64 << 10;
/// Longest wait for the end of the thread, which may hang in a dead disk.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends a notice to the supervisor.
pub(super) type Notify = Arc<dyn Fn(RunKey, Notice) + Send + Sync>;

enum Task {
    Write(Batch),
    Remove(Removal),
}

/// The queue of the thread. It is bounded: it holds at most [`BATCHES`] batches, and one removal for each log with
/// files.
#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// Whether the thread is writing a batch.
    writing: bool,
    /// Whether the thread sleeps. Otherwise it need not be woken, which is a system call.
    sleeps: bool,
    /// The thread ends once the queue is empty.
    closed: bool,
}

impl Queue {
    /// Whether any output has not been written yet.
    fn has_output(&self) -> bool {
        self.writing || self.tasks.iter().any(|task| matches!(task, Task::Write(_)))
    }
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// The output thread waits for a written batch.
    wanted: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a task. Returns the task if the queue is closed.
    fn push(&self, task: Task) -> Result<(), Task> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(task);
        }
        queue.tasks.push_back(task);
        let sleeps = queue.sleeps;
        drop(queue);
        if sleeps {
            self.wake.notify_one();
        }
        Ok(())
    }

    fn next(&self) -> Option<Task> {
        let mut queue = self.lock();
        loop {
            let task = queue.tasks.pop_front();
            queue.writing = matches!(task, Some(Task::Write(_)));
            if let Some(task) = task {
                return Some(task);
            }
            if queue.closed {
                return None;
            }
            queue.sleeps = true;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.sleeps = false;
        }
    }
}

/// Removes files of logs on the log writer thread.
#[derive(Clone)]
pub struct Remover(Arc<Shared>);

impl Remover {
    /// Removes the files: on the calling thread if the log writer thread is ending.
    pub fn remove(&self, removal: Removal) {
        if let Err(Task::Remove(removal)) = self.0.push(Task::Remove(removal)) {
            removal.perform();
        }
    }
}

/// A handle to the thread. When dropped, the thread writes what is queued and ends; if the disk does not respond within
/// [`JOIN_TIMEOUT`], the thread is abandoned.
pub(super) struct LogWriter {
    shared: Arc<Shared>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Starts the thread. `waker` wakes the output thread.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub(super) fn start(
        notify: Notify,
        waker: Arc<Waker>,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<(LogWriter, Batches)> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), wanted: AtomicBool::new(false) });
        let (to_output, written) = unbounded();
        let (running, ended) = bounded(0);
        let of_thread = Arc::clone(&shared);
        let body = move || {
            let _running: Sender<()> = running;
            // The whole call is idle, so that a queue that is never empty is not taken for a hang.
            while let Some(task) = thread::idle(|| of_thread.next()) {
                match task {
                    Task::Write(mut batch) => {
                        batch.perform(&*notify);
                        // Dropped if the output thread has ended.
                        let _ = to_output.send(batch);
                        if of_thread.wanted.swap(false, Ordering::SeqCst)
                            && let Err(error) = waker.wake()
                        {
                            log::error!("cannot wake the output thread: {error}");
                        }
                    }
                    Task::Remove(removal) => removal.perform(),
                }
            }
            Ok(())
        };
        let thread = thread::spawn("log-writer", body, died)?;
        let batches = Batches {
            shared: Arc::clone(&shared),
            filling: Batch::new(),
            spare: (1..BATCHES).map(|_| Batch::new()).collect(),
            written,
            large_out: false,
            last_number: 0,
            last_written: 0,
        };
        Ok((LogWriter { shared, ended, thread: Some(thread) }, batches))
    }

    pub(super) fn remover(&self) -> Remover {
        Remover(Arc::clone(&self.shared))
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        let hangs = self.ended.recv_timeout(JOIN_TIMEOUT).is_err_and(|error| error.is_timeout());
        match self.thread.take() {
            Some(_) if hangs => {
                let lost =
                    if self.shared.lock().has_output() { "output is lost" } else { "files of logs are not removed" };
                log::error!("the disk of the logs does not respond: {lost}");
            }
            Some(thread) => drop(thread.join()),
            None => {}
        }
    }
}

/// The batches, as the output thread owns them.
pub(super) struct Batches {
    shared: Arc<Shared>,
    filling: Batch,
    spare: Vec<Batch>,
    written: Receiver<Batch>,
    /// Whether a batch that the log writer has uses more than [`LARGE`] bytes.
    large_out: bool,
    last_number: u64,
    /// The number of the last batch that has been written.
    last_written: u64,
}

impl Batches {
    /// The batch to read into; None while all batches are full.
    pub(super) fn for_reading(&mut self) -> Option<&mut Batch> {
        if self.filling.is_full() {
            self.send();
        }
        (!self.filling.is_full()).then_some(&mut self.filling)
    }

    /// After the operation `first`, appends the first `now` of the `count` bytes that were read into the batch to a
    /// log. Adds the others, which come after the end of a drain, to `surplus`.
    pub(super) fn append_read(
        &mut self,
        log: Writing,
        stream: Stream,
        now: usize,
        count: usize,
        surplus: &mut Vec<u8>,
        first: Option<Operation>,
    ) {
        surplus.extend_from_slice(self.filling.room().get(now..count).unwrap_or_default());
        first.into_iter().for_each(|operation| self.push(operation));
        self.filling.append(log, wall(), stream, now, count);
    }

    /// Adds an operation, even to a full batch: such operations are few, and adding one does not wait for the disk.
    pub(super) fn push(&mut self, operation: Operation) {
        self.filling.push(operation);
    }

    pub(super) fn append_owned(&mut self, log: Writing, time: Millis, stream: Stream, bytes: Vec<u8>) {
        self.push(Operation::AppendOwned(log, time, stream, bytes));
    }

    /// The number that the batch being filled will have.
    pub(super) fn number(&self) -> u64 {
        self.last_number + 1
    }

    /// Sends the current batch if it is not empty and another one is free to fill.
    pub(super) fn send(&mut self) {
        self.collect();
        if self.filling.is_empty() {
            return;
        }
        if let Some(next) = self.spare.pop() {
            let full = std::mem::replace(&mut self.filling, next);
            self.hand_over(full);
        }
    }

    /// Sends the current batch at the end of the output thread.
    pub(super) fn send_last(&mut self) {
        let last = std::mem::replace(&mut self.filling, Batch::new());
        self.hand_over(last);
    }

    fn hand_over(&mut self, mut batch: Batch) {
        self.large_out |= batch.memory() > LARGE;
        self.last_number += 1;
        batch.number = self.last_number;
        // Fails only after the queue was closed, which happens after the end of this thread.
        let _ = self.shared.push(Task::Write(batch));
    }

    /// Takes back the written batches. Returns the number of the last one.
    pub(super) fn collect(&mut self) -> u64 {
        for batch in self.written.try_iter() {
            self.last_written = batch.number;
            self.spare.push(batch);
        }
        self.large_out &= self.spare.len() + 1 < BATCHES;
        self.last_written
    }

    /// Sends the current batch before the output thread sleeps. If no other batch is free, requests a wake-up when one
    /// has been written.
    pub(super) fn send_before_sleep(&mut self) {
        self.send();
        if !self.filling.is_empty() {
            self.shared.wanted.store(true, Ordering::SeqCst);
            // A batch may have been written just before the flag was set.
            self.send();
        }
    }

    /// Whether batches hold memory that they do not need when idle.
    pub(super) fn hold_memory(&self) -> bool {
        self.large_out || self.spare.iter().chain([&self.filling]).any(|batch| batch.memory() > LARGE)
    }

    /// Returns that memory to the kernel.
    pub(super) fn release_memory(&mut self) {
        self.collect();
        let filling = Some(&mut self.filling).filter(|batch| batch.is_empty());
        let large = self.spare.iter_mut().chain(filling).filter(|batch| batch.memory() > LARGE);
        large.for_each(Batch::release_memory);
    }
}
