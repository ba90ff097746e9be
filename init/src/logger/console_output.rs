//! `--console-output`: copies the output of managed processes to stdout, each line after the name of its process.
//!
//! A thread of its own follows the logs, so it delays neither the processes nor anything else, and what stdout does not
//! take yet waits in the logs. A line that stdout has not taken [`PATIENCE`] after it was written is dropped; the copy says
//! how many were. While there is nothing to copy, or stdout takes nothing, the thread sleeps.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use tl_os::poll::{self, Events, Waker};
use tl_os::thread;
use tl_supervisor::program_log::{Escaped, MAX_WRITE, Sink};
use tl_supervisor::{Cursor, Follower, Item, StartAt, Started, UnitId, View};

/// How long a line may wait for stdout.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum number of lines of one process that are copied before it is the turn of another.
const TURN: usize = 256;

/// Time after which a log that could not be read is read again.
const RETRY: Duration = Duration::from_secs(1);

/// At the end of the daemon, how long stdout gets to take the rest.
const FINISH: Duration = Duration::from_secs(1);

/// Maximum length of a name in the copy, in characters.
const MAX_NAME: usize = 128;

enum Message {
    /// A run of a managed process has started.
    Started(Box<Started>),
    /// The log of this unit may have more.
    Ready(UnitId),
    /// The daemon ends: copy the rest until this time.
    Finish(Instant),
}

/// Sends to the thread.
#[derive(Clone)]
pub(crate) struct ConsoleSender {
    messages: Sender<Message>,
    waker: Arc<Waker>,
}

impl ConsoleSender {
    fn send(&self, message: Message) {
        // The queue is bounded by the number of starts and of followers: each has one message in it at most.
        if self.messages.send(message).is_ok() {
            Waker::wake(&self.waker);
        }
    }

    /// Has the output of a managed process copied, from its first run on.
    pub(crate) fn started(&self, started: Started) {
        self.send(Message::Started(Box::new(started)));
    }
}

/// A handle to the thread.
pub(crate) struct ConsoleOutput {
    sender: ConsoleSender,
    ended: Receiver<()>,
}

impl ConsoleOutput {
    /// Starts the thread. `keep_ended`: the number of ended processes that the supervisor remembers.
    ///
    /// # Errors
    /// If the system has no thread or descriptor left.
    pub(crate) fn start(keep_ended: usize) -> io::Result<ConsoleOutput> {
        let (messages, inbox) = unbounded();
        let sender = ConsoleSender { messages, waker: Arc::new(Waker::new()?) };
        let (tell, ended) = bounded::<()>(0);
        let mut copy = Copy {
            sender: sender.clone(),
            inbox,
            sources: HashMap::new(),
            ended: VecDeque::new(),
            keep_ended,
            unfinished: VecDeque::new(),
            retry_at: None,
            finish_at: None,
            out: Out::new(Sink::stdout()),
        };
        let body = move || {
            // Dropped when the thread ends.
            let _ = &tell;
            copy.run();
            Ok(())
        };
        thread::spawn_persistent("console", body)?;
        Ok(ConsoleOutput { sender, ended })
    }

    /// A sender to the thread.
    pub(crate) fn sender(&self) -> ConsoleSender {
        self.sender.clone()
    }

    /// Copies what is left, once all processes have ended. Returns after twice [`FINISH`] at the latest.
    pub(crate) fn finish(&self) {
        self.sender.send(Message::Finish(Instant::now() + FINISH));
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(2 * FINISH) {
            log::warn!("the console output hangs: its end is lost");
        }
    }
}

/// A process whose output is copied.
struct Source {
    prefix: String,
    follower: Follower,
    ready: Arc<Ready>,
}

/// The waker of a follower: sends one message until that is handled.
struct Ready {
    unit: UnitId,
    is_sent: AtomicBool,
    sender: ConsoleSender,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        if !self.is_sent.swap(true, Ordering::SeqCst) {
            self.sender.send(Message::Ready(self.unit));
        }
    }
}

/// The state of the thread.
struct Copy {
    sender: ConsoleSender,
    inbox: Receiver<Message>,
    sources: HashMap<UnitId, Source>,
    /// Where the copies of ended processes stopped, oldest end first: such a process can be restarted.
    ended: VecDeque<(UnitId, Cursor)>,
    keep_ended: usize,
    /// The processes with more to copy.
    unfinished: VecDeque<UnitId>,
    /// When to read the logs again that could not be read.
    retry_at: Option<Instant>,
    finish_at: Option<Instant>,
    out: Out,
}

impl Copy {
    fn run(&mut self) {
        loop {
            while let Ok(message) = self.inbox.try_recv() {
                self.receive(message);
            }
            if self.retry_at.is_some_and(|at| at <= Instant::now()) {
                self.retry_at = None;
                self.unfinished = self.sources.keys().copied().collect();
            }
            let is_free = self.out.flush();
            if self.finish_at.is_some_and(|at| at <= Instant::now()) {
                return log::warn!("stdout does not take the end of the console output");
            }
            if is_free && let Some(unit) = self.unfinished.pop_front() {
                self.turn(unit);
                continue;
            }
            if is_free && !self.out.end_of_backlog() {
                continue;
            }
            if is_free && self.finish_at.is_some() && self.retry_at.is_none() {
                return;
            }
            let waker = Arc::clone(&self.sender.waker);
            let deadline = self.retry_at.into_iter().chain(self.finish_at).min();
            thread::idle(|| self.out.wait(&waker, !is_free, deadline));
            waker.clear();
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Started(started) => self.follow(*started),
            Message::Ready(unit) => {
                if let Some(source) = self.sources.get(&unit) {
                    source.ready.is_sent.store(false, Ordering::SeqCst);
                    // A follower that cannot read its log wakes at once. All logs are read at that time.
                    if self.retry_at.is_none() {
                        self.unfinished.push_back(unit);
                    }
                }
            }
            Message::Finish(at) => {
                self.finish_at = Some(at);
                self.unfinished = self.sources.keys().copied().collect();
            }
        }
    }

    /// Follows the output of a process. At a restart, goes on where the copy has stopped.
    fn follow(&mut self, started: Started) {
        let unit = started.info.handle;
        let Some(managed) = &started.info.managed else { return };
        if self.sources.contains_key(&unit) {
            return;
        }
        let stopped = self.ended.iter().position(|(ended, _)| *ended == unit).and_then(|at| self.ended.remove(at));
        let from = match stopped {
            Some((_, cursor)) => StartAt::After(cursor),
            None if managed.restart_count == 0 => StartAt::Beginning,
            None => StartAt::Tail(0),
        };
        let mut prefix = String::new();
        // Writing to a string cannot fail.
        let _ = Escaped(&mut prefix).write_str(&managed.id.chars().take(MAX_NAME).collect::<String>());
        prefix.push_str(" | ");
        let ready = Arc::new(Ready { unit, is_sent: AtomicBool::new(false), sender: self.sender.clone() });
        let follower = started.follow(View::Combined, from, Arc::clone(&ready).into());
        self.sources.insert(unit, Source { prefix, follower, ready });
        self.unfinished.push_back(unit);
    }

    /// Copies some lines of one process.
    fn turn(&mut self, unit: UnitId) {
        for _ in 0..TURN {
            let Some(source) = self.sources.get_mut(&unit) else { return };
            // The deadline has passed: this does not wait.
            match source.follower.next(Some(Instant::now())) {
                Ok(Some(Item::Line(line, _))) => self.out.add(&source.prefix, &line.text, line.timestamp),
                Ok(Some(Item::Gap { lost_bytes, .. })) => {
                    let name = source.prefix.trim_end_matches(" | ");
                    self.out.note(&format!("{lost_bytes} bytes of the output of {name} were dropped"));
                }
                Ok(Some(Item::End(_, cursor))) => {
                    self.sources.remove(&unit);
                    self.ended.push_back((unit, cursor));
                    if self.ended.len() > self.keep_ended.saturating_add(TURN) {
                        self.ended.pop_front();
                    }
                    return;
                }
                Ok(_) => return,
                // Descriptors or memory have run out.
                Err(_) => return self.retry_at = Some(Instant::now() + RETRY),
            }
            if !self.out.has_room() && !self.out.flush() {
                break;
            }
        }
        self.unfinished.push_back(unit);
    }
}

/// What is written to stdout.
struct Out {
    sink: Sink,
    /// Lines that stdout has not taken, each [`MAX_WRITE`] bytes at most, with its newline.
    buffer: Vec<u8>,
    /// The time, on both clocks, since when stdout has not taken everything at once; none after there was nothing to copy.
    behind_since: Option<(Instant, Duration)>,
    /// Number of lines that were dropped and have not been reported.
    dropped: u64,
    /// Number of dropped lines that are reported in the buffer.
    reported: u64,
    /// The last write has failed: it is not tried again before there is another line.
    has_failed: bool,
}

impl Out {
    fn new(sink: Sink) -> Out {
        Out { sink, buffer: Vec::new(), behind_since: None, dropped: 0, reported: 0, has_failed: false }
    }

    fn has_room(&self) -> bool {
        self.buffer.len() < MAX_WRITE
    }

    /// Adds a line that was read at `timestamp`, or drops it if that was too long ago. A line that is too long for one
    /// write is added as several lines.
    fn add(&mut self, prefix: &str, text: &str, timestamp: u64) {
        let age = |since: (Instant, Duration)| age(timestamp, wall(), since.1.saturating_add(since.0.elapsed()));
        if self.behind_since.is_some_and(|since| age(since) > PATIENCE) {
            self.dropped += 1;
            return;
        }
        self.report_dropped();
        let room = MAX_WRITE - prefix.len().min(MAX_WRITE / 2) - 1;
        let mut rest = text;
        loop {
            let mut end = rest.len().min(room);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            let (piece, more) = rest.split_at(end);
            self.buffer.extend([prefix.as_bytes(), piece.as_bytes(), b"\n"].concat());
            rest = more;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Adds a line of the daemon's own.
    fn note(&mut self, text: &str) {
        self.buffer.extend(format!("tl-init: {text}\n").bytes());
    }

    fn report_dropped(&mut self) {
        if self.dropped > 0 {
            self.note(&format!("{} lines of this output were dropped", self.dropped));
            self.reported += std::mem::take(&mut self.dropped);
        }
        self.has_failed = false;
    }

    /// There is nothing left to copy. Returns whether there is nothing left to write either.
    fn end_of_backlog(&mut self) -> bool {
        self.behind_since = None;
        if self.dropped == 0 || self.has_failed {
            return true;
        }
        self.report_dropped();
        false
    }

    fn fall_behind(&mut self) {
        self.behind_since.get_or_insert_with(|| (Instant::now(), wall()));
    }

    /// Writes what stdout takes at once. Returns whether that was everything.
    fn flush(&mut self) -> bool {
        while !self.buffer.is_empty() {
            if !self.sink.wait(Some(Instant::now())) {
                self.fall_behind();
                return false;
            }
            let most = self.buffer.get(..MAX_WRITE).unwrap_or(&self.buffer);
            let end = most.iter().rposition(|byte| *byte == b'\n').map_or(most.len(), |at| at + 1);
            match self.sink.write(self.buffer.get(..end).unwrap_or(&self.buffer)) {
                Ok(written) => drop(self.buffer.drain(..written)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    self.fall_behind();
                    return false;
                }
                // It has no reader, or its disk is full.
                Err(_) => {
                    let lines = self.buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
                    self.dropped += lines + std::mem::take(&mut self.reported).saturating_sub(1);
                    self.buffer.clear();
                    self.has_failed = true;
                }
            }
        }
        self.reported = 0;
        self.buffer.shrink_to(MAX_WRITE);
        true
    }

    /// Waits for the waker and, if `for_sink`, for stdout.
    fn wait(&self, waker: &Waker, for_sink: bool, deadline: Option<Instant>) {
        let woken = (waker.as_fd(), Events::READ);
        // An error is that of poll(2) without memory; then the loop tries again.
        let _ = match for_sink {
            true => self.sink.with_fd(|fd| poll::wait([woken, (fd, Events::WRITE)], deadline).map(drop)),
            false => poll::wait([woken], deadline).map(drop),
        };
    }
}

/// The wall clock: time since 1970.
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The age of a line that was read at `timestamp` of the wall clock. `now` is that clock, `unset` what it would show if
/// it had not been set since stdout fell behind. The line was read before or after that, so the lower age is the right one;
/// a negative one is none.
fn age(timestamp: u64, now: Duration, unset: Duration) -> Duration {
    let ages = [now, unset].into_iter().filter_map(|now| now.checked_sub(Duration::from_millis(timestamp)));
    ages.min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_clock_changes_no_age() {
        const DAY: u64 = 86_400;
        let at = |secs: u64| Duration::from_secs(30 * DAY + secs);
        let line = |secs: u64| at(secs).as_millis() as u64;
        // Not set; then set forward and back by a day, and lines from before and from after that.
        for (line, now, right) in [
            (line(5), at(12), 7),
            (line(5), at(12 + DAY), 7),
            (line(5 + DAY), at(12 + DAY), 7),
            (line(5), at(12) - Duration::from_secs(DAY), 7),
            (line(5) - 1000 * DAY, at(12) - Duration::from_secs(DAY), 7),
            (line(15), at(12), 0),
        ] {
            assert_eq!(age(line, now, at(12)), Duration::from_secs(right), "{line} {now:?}");
        }
    }
}
