//! The thread that writes all logs, and removes the files of logs that are gone: the only one that waits for the disk of the logs.
//!
//! The output thread hands it batches. While it writes one, the output thread fills another; when all are full, the output thread
//! stops reading pipes, and goes on with everything else. So a dead disk stops output, and neither an exec's report, nor stdin,
//! nor a terminal, nor the end of a run.

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

/// Batches that there are: one that is filled, one that is written, and others between them. They are small, and the last that was
/// written is filled next: what is read is still in the processor's cache when it is written.
const BATCHES: usize = 8;
/// A batch with more bytes of memory gives it back to the kernel when there is nothing to write.
const LARGE: usize = 64 << 10;
/// How long the end of the thread is waited for: it may hang in a dead disk.
const JOIN_PATIENCE: Duration = Duration::from_secs(1);

/// Calls the supervisor.
pub(super) type Notify = Arc<dyn Fn(RunKey, Notice) + Send + Sync>;

enum Task {
    Write(Batch),
    Remove(Removal),
}

/// The queue of the thread. It is bounded: there are [`BATCHES`] batches, and as many removals as there are logs with files.
#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// The thread writes a batch.
    writing: bool,
    /// The thread ends when the queue is empty.
    closed: bool,
}

impl Queue {
    /// Whether output is not written yet.
    fn has_output(&self) -> bool {
        self.writing || self.tasks.iter().any(|task| matches!(task, Task::Write(_)))
    }
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// The output thread waits for a batch to come back.
    wanted: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the task back where the thread has been told to end.
    fn push(&self, task: Task) -> Result<(), Task> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(task);
        }
        queue.tasks.push_back(task);
        drop(queue);
        self.wake.notify_one();
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
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Has the files of logs removed by the thread that writes logs.
#[derive(Clone)]
pub struct Remover(Arc<Shared>);

impl Remover {
    /// Removes the files; on the calling thread where the other one has ended.
    pub fn remove(&self, removal: Removal) {
        if let Err(Task::Remove(removal)) = self.0.push(Task::Remove(removal)) {
            removal.perform();
        }
    }
}

/// The thread. Dropped, it writes what it has been given and ends; where the disk does not answer, it is left behind.
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
    /// When the kernel gives no thread.
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
            while let Some(task) = of_thread.next() {
                match task {
                    Task::Write(mut batch) => {
                        batch.perform(&*notify);
                        // Lost where the output thread has ended.
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
        let hangs = self.ended.recv_timeout(JOIN_PATIENCE).is_err_and(|error| error.is_timeout());
        match self.thread.take() {
            Some(_) if hangs => {
                let lost =
                    if self.shared.lock().has_output() { "output is lost" } else { "files of logs are not removed" };
                log::error!("the disk of the logs does not answer: {lost}");
            }
            Some(thread) => drop(thread.join()),
            None => {}
        }
    }
}

/// The batches, in the hands of the output thread.
pub(super) struct Batches {
    shared: Arc<Shared>,
    filling: Batch,
    spare: Vec<Batch>,
    written: Receiver<Batch>,
    /// Batches that the thread has hold memory that they do not need while there is nothing to write.
    large_out: bool,
    last_number: u64,
    /// The number of the last batch that has been written.
    last_written: u64,
}

impl Batches {
    /// The batch to read into and to append from; none while all are full.
    pub(super) fn for_reading(&mut self) -> Option<&mut Batch> {
        if self.filling.is_full() {
            self.send();
        }
        (!self.filling.is_full()).then_some(&mut self.filling)
    }

    /// Appends the first `now` of `count` bytes that were read into the room of the batch to a log, after `first`. The others are
    /// the surplus of a drain.
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

    /// Adds an operation, even to a full batch: there are few of these, and none of them waits for the disk here.
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

    /// Hands over what there is, if there is another batch to go on with.
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

    /// Hands over what there is at the end of the thread.
    pub(super) fn send_last(&mut self) {
        let last = std::mem::replace(&mut self.filling, Batch::new());
        self.hand_over(last);
    }

    fn hand_over(&mut self, mut batch: Batch) {
        self.large_out |= batch.memory() > LARGE;
        self.last_number += 1;
        batch.number = self.last_number;
        // Refused only after the end of this thread.
        let _ = self.shared.push(Task::Write(batch));
    }

    /// Takes back the batches that have been written; the number of the last.
    pub(super) fn collect(&mut self) -> u64 {
        for batch in self.written.try_iter() {
            self.last_written = batch.number;
            self.spare.push(batch);
        }
        self.large_out &= self.spare.len() + 1 < BATCHES;
        self.last_written
    }

    /// Before the thread sleeps: hands over what there is. Where there is no batch to go on with, the thread is woken when one has
    /// come back.
    pub(super) fn send_before_sleep(&mut self) {
        self.send();
        if !self.filling.is_empty() {
            self.shared.wanted.store(true, Ordering::SeqCst);
            // It may have come back before the flag was up.
            self.send();
        }
    }

    /// Whether batches hold memory that they do not need while there is nothing to write.
    pub(super) fn hold_memory(&self) -> bool {
        self.large_out || self.spare.iter().chain([&self.filling]).any(|batch| batch.memory() > LARGE)
    }

    /// Gives that memory back to the kernel.
    pub(super) fn give_back_memory(&mut self) {
        self.collect();
        let filling = Some(&mut self.filling).filter(|batch| batch.is_empty());
        let large = self.spare.iter_mut().chain(filling).filter(|batch| batch.memory() > LARGE);
        large.for_each(Batch::give_back);
    }
}
