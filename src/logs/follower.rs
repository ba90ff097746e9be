//! Followers: each reads a log at its own pace, and is woken when there is more to read.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::cursor::Cursor;
use super::log::{Bound, OutputLog};
use super::long::{Long, LongText};
use super::wakers::Armed;
use super::{Item, StartAt, View, tail};
use crate::logs::line_reader::{LineEvent, LineReader};
use crate::model::Stream;

/// An item of a follower that returns long lines as readers.
pub(crate) enum Part {
    Item(Item),
    /// A reader of a long line, and the cursor after the line.
    Long(Box<LongText>, Cursor),
}

/// Reads a log at its own pace. Even a slow follower loses nothing that retention keeps, receives nothing twice, and
/// delays neither the writer nor other followers.
///
/// While there is nothing to read, it uses no descriptor and a few hundred bytes of memory.
///
/// ```
/// use std::task::Waker;
/// use tl_supervisor::{Item, ProcessSpec, StartAt, Supervisor, Target, UserSpec, View};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let handle = supervisor.handle();
/// let unit = handle.start(ProcessSpec::command("sh").args(["-c", "echo one; echo two"]).build()?)?.handle;
///
/// let mut follower = handle.follow(&Target::Unit(unit), View::Stdout)?;
/// let Some(Item::Line(line, cursor)) = follower.next(None)? else { panic!("the first line") };
/// assert_eq!(line.text, "one");
/// // Another follower can continue at the cursor.
/// let process = handle.look_up(&Target::Unit(unit))?;
/// let mut second = process.follow(View::Stdout, StartAt::After(cursor), Waker::noop().clone());
/// assert!(matches!(second.next(None)?, Some(Item::Line(line, _)) if line.text == "two"));
/// assert!(matches!(second.next(None)?, Some(Item::End(end, _)) if end.exit.success()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Follower {
    log: Arc<OutputLog>,
    reader: LineReader,
    id: u64,
    armed: Arc<Armed>,
    /// Whether [`Item::End`] has been returned.
    done: bool,
    /// A long line that [`Follower::try_next`] must still read, and the cursor after it.
    long: Option<(Box<Long>, Cursor)>,
    /// The gap after the line that was returned last.
    after: Option<Item>,
    /// Why the log could not be read at the last attempt.
    failure: Option<io::Error>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("log", &self.log).field("done", &self.done).finish_non_exhaustive()
    }
}

impl OutputLog {
    /// A follower of this log. `waker` is woken when [`Follower::try_next`] may return an item.
    ///
    /// With [`StartAt::Tail`], this call reads a part of the log, in proportion to the number of lines.
    pub fn follow(self: &Arc<Self>, view: View, from: StartAt, waker: impl Into<Waker>) -> Follower {
        let from = match self.begin(view, from, &mut || false) {
            Some(reader) => reader,
            // Not reached, because the closure never cancels.
            None => LineReader::from_beginning(self, view, Bound::Live),
        };
        self.follow_with(from, waker.into())
    }

    /// Like [`OutputLog::follow`], but returns None if `cancelled` returns true while the log is being read.
    pub(crate) fn follow_unless(
        self: &Arc<Self>,
        view: View,
        from: StartAt,
        waker: impl Into<Waker>,
        mut cancelled: impl FnMut() -> bool,
    ) -> Option<Follower> {
        self.begin(view, from, &mut cancelled).map(|reader| self.follow_with(reader, waker.into()))
    }

    fn begin(self: &Arc<Self>, view: View, from: StartAt, cancelled: tail::Cancelled<'_>) -> Option<LineReader> {
        Some(match from {
            StartAt::Beginning => LineReader::from_beginning(self, view, Bound::Live),
            StartAt::After(cursor) => LineReader::resume(self, view, Bound::Live, cursor),
            StartAt::Tail(n) => {
                let (mut reader, _) = tail::last(self, view, n, self.live_snapshot(), false, cancelled)?;
                reader.set_bound(Bound::Live);
                reader
            }
        })
    }

    fn follow_with(self: &Arc<Self>, reader: LineReader, waker: Waker) -> Follower {
        let (id, armed) = self.register(waker);
        Follower { log: Arc::clone(self), reader, id, armed, done: false, long: None, after: None, failure: None }
    }
}

impl Follower {
    /// The next item. None if there is none yet, in which case the waker will be woken; always None after
    /// [`Item::End`].
    pub fn try_next(&mut self) -> Option<Item> {
        if let Some(after) = self.after.take() {
            return Some(after);
        }
        if self.long.is_none() {
            match self.try_event()? {
                NextItem::Item(item) => return Some(item),
                NextItem::Long(long, cursor) => self.long = Some((long, cursor)),
            }
        }
        let (long, cursor) = self.long.take()?;
        match long.whole(&self.log) {
            Ok((line, 0)) => Some(Item::Line(line, cursor)),
            Ok((line, lost_bytes)) => {
                let gap = Item::Gap { lost_bytes, cursor };
                if line.text.is_empty() {
                    return Some(gap);
                }
                self.after = Some(gap);
                Some(Item::Line(line, long.cursor_before_loss(lost_bytes, cursor)))
            }
            Err(error) => {
                self.long = Some((long, cursor));
                self.fail(error);
                None
            }
        }
    }

    /// Like [`Follower::try_next`], but returns long lines as readers. The two must not be mixed.
    pub(crate) fn try_part(&mut self) -> Option<Part> {
        Some(match self.try_event()? {
            NextItem::Item(item) => Part::Item(item),
            NextItem::Long(long, cursor) => Part::Long(Box::new(long.text(&self.log)), cursor),
        })
    }

    /// The unfinished lines so far, of which [`Follower::try_part`] has returned nothing yet; without those that are longer
    /// than 16 KiB.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = (Stream, &[u8])> {
        let streams = [Stream::Stdout, Stream::Stderr].into_iter();
        streams.filter_map(|stream| Some((stream, self.reader.unfinished(stream)?)))
    }

    fn fail(&mut self, error: io::Error) {
        self.failure = Some(error);
        // Without this the caller would try again only after the next append, which may never come.
        self.armed.wake();
    }

    fn try_event(&mut self) -> Option<NextItem> {
        if self.done {
            return None;
        }
        let mut looked_again = false;
        loop {
            let found = match self.reader.next() {
                LineEvent::Line(line, cursor) => NextItem::Item(Item::Line(line, cursor)),
                LineEvent::Long(long, cursor) => NextItem::Long(long, cursor),
                LineEvent::Gap(lost_bytes, cursor) => NextItem::Item(Item::Gap { lost_bytes, cursor }),
                LineEvent::Synced => continue,
                LineEvent::Failed(error) => {
                    self.fail(error);
                    return None;
                }
                LineEvent::AtEnd => match self.log.ended_at(self.reader.at()) {
                    Some(end) => {
                        self.done = true;
                        self.reader.release();
                        NextItem::Item(Item::End(end, self.reader.cursor()))
                    }
                    None if looked_again => {
                        self.reader.release();
                        return None;
                    }
                    None => {
                        self.log.arm(&self.armed);
                        looked_again = true;
                        continue;
                    }
                },
            };
            if looked_again {
                self.log.disarm(&self.armed);
            }
            return Some(found);
        }
    }

    /// Waits for the next item. Returns None at the deadline, and at once after [`Item::End`].
    ///
    /// # Errors
    /// If the log cannot be read now because descriptors or memory have run out. Nothing is lost: call it again later.
    pub fn next(&mut self, deadline: Option<Instant>) -> io::Result<Option<Item>> {
        loop {
            if let Some(item) = self.try_next() {
                return Ok(Some(item));
            }
            if !self.wait(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Like [`Follower::next`], but returns long lines as readers.
    pub(crate) fn next_part(&mut self, deadline: Option<Instant>) -> io::Result<Option<Part>> {
        loop {
            if let Some(part) = self.try_part() {
                return Ok(Some(part));
            }
            if !self.wait(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Waits until there may be another item. Returns false at the deadline, and after the end.
    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if self.done {
            return Ok(false);
        }
        Ok(self.armed.parker.park(deadline))
    }
}

/// An item, or a long line that is still in the log.
enum NextItem {
    Item(Item),
    Long(Box<Long>, Cursor),
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.unregister(self.id, &self.armed);
    }
}
