//! Following a log: a cursor of one's own, and a wake when there is more.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::cursor::Cursor;
use super::log::{Armed, Bound, OutputLog};
use super::long::{Long, LongText};
use super::{Item, StartAt, View, tail};
use crate::logs::line_reader::{Cutter, Event};

/// What a follower comes upon, where a long line need not be held in memory.
pub(crate) enum Part {
    Item(Item),
    /// A line to be read piece by piece, and the place after it.
    Long(Box<LongText>, Cursor),
}

/// Reads a log at its own pace: nothing is lost or given twice, however slow it is, and nobody else notices.
///
/// It holds no descriptor, and no memory to speak of while there is nothing to read.
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
/// // The cursor is where another follower can go on.
/// let process = handle.look_up(&Target::Unit(unit))?;
/// let mut second = process.follow(View::Stdout, StartAt::After(cursor), Waker::noop().clone());
/// assert!(matches!(second.next(None)?, Some(Item::Line(line, _)) if line.text == "two"));
/// assert!(matches!(second.next(None)?, Some(Item::End(end, _)) if end.exit.success()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Follower {
    log: Arc<OutputLog>,
    cutter: Cutter,
    id: u64,
    armed: Arc<Armed>,
    /// [`Item::End`] was given.
    done: bool,
    /// A long line that is still to be read whole, and the place after it.
    long: Option<(Box<Long>, Cursor)>,
    /// What follows a line that was given last.
    after: Option<Item>,
    /// Why it could not be read just now.
    failure: Option<io::Error>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("log", &self.log).field("done", &self.done).finish_non_exhaustive()
    }
}

impl OutputLog {
    /// A follower with a cursor of its own. `waker` is woken when there may be more to take.
    ///
    /// With [`StartAt::Tail`] it reads some of the log at once, the more the more lines are asked for.
    pub fn follow(self: &Arc<Self>, view: View, from: StartAt, waker: impl Into<Waker>) -> Follower {
        let from = match self.begin(view, from, &mut || false) {
            Some(cutter) => cutter,
            // Nobody said so.
            None => Cutter::from_beginning(self, view, Bound::Live),
        };
        self.follow_with(from, waker.into())
    }

    /// The same, but gives up with none once `gone` says that nobody wants it any more.
    pub(crate) fn follow_unless(
        self: &Arc<Self>,
        view: View,
        from: StartAt,
        waker: impl Into<Waker>,
        mut gone: impl FnMut() -> bool,
    ) -> Option<Follower> {
        self.begin(view, from, &mut gone).map(|cutter| self.follow_with(cutter, waker.into()))
    }

    fn begin(self: &Arc<Self>, view: View, from: StartAt, gone: tail::Gone<'_>) -> Option<Cutter> {
        Some(match from {
            StartAt::Beginning => Cutter::from_beginning(self, view, Bound::Live),
            StartAt::After(cursor) => Cutter::resume(self, view, Bound::Live, cursor),
            StartAt::Tail(n) => {
                let (mut cutter, _) = tail::last(self, view, n, self.live_snapshot(), false, gone)?;
                cutter.set_bound(Bound::Live);
                cutter
            }
        })
    }

    fn follow_with(self: &Arc<Self>, cutter: Cutter, waker: Waker) -> Follower {
        let (id, armed) = self.register(waker);
        Follower { log: Arc::clone(self), cutter, id, armed, done: false, long: None, after: None, failure: None }
    }
}

impl Follower {
    /// The next item, or None when there is none yet (the waker will be woken). None for ever after [`Item::End`].
    pub fn try_next(&mut self) -> Option<Item> {
        if let Some(after) = self.after.take() {
            return Some(after);
        }
        if self.long.is_none() {
            match self.try_event()? {
                Found::Item(item) => return Some(item),
                Found::Long(long, cursor) => self.long = Some((long, cursor)),
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
                Some(Item::Line(line, cursor))
            }
            Err(error) => {
                self.long = Some((long, cursor));
                self.fail(error);
                None
            }
        }
    }

    /// The same, but a line that is too long to be held is left to be read piece by piece. Not to be mixed with
    /// [`Follower::try_next`].
    pub(crate) fn try_part(&mut self) -> Option<Part> {
        Some(match self.try_event()? {
            Found::Item(item) => Part::Item(item),
            Found::Long(long, cursor) => Part::Long(Box::new(long.text(&self.log)), cursor),
        })
    }

    fn fail(&mut self, error: io::Error) {
        self.failure = Some(error);
        // Nobody else will do it.
        self.armed.wake();
    }

    fn try_event(&mut self) -> Option<Found> {
        if self.done {
            return None;
        }
        let mut looked_again = false;
        loop {
            let found = match self.cutter.next() {
                Event::Line(line, cursor) => Found::Item(Item::Line(line, cursor)),
                Event::Long(long, cursor) => Found::Long(long, cursor),
                Event::Gap(lost_bytes, cursor) => Found::Item(Item::Gap { lost_bytes, cursor }),
                Event::Synced => continue,
                Event::Failed(error) => {
                    self.fail(error);
                    return None;
                }
                Event::AtEnd => match self.log.ended_at(self.cutter.at()) {
                    Some(end) => {
                        self.done = true;
                        self.cutter.release();
                        Found::Item(Item::End(end, self.cutter.cursor()))
                    }
                    None if looked_again => {
                        self.cutter.release();
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

    /// The next item; None at the deadline, and at once after [`Item::End`].
    ///
    /// # Errors
    /// When the log cannot be read now, for want of descriptors or memory. Nothing is lost: call it again.
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

    /// The same, with long lines left to be read piece by piece.
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

    /// Waits until there may be more: true; or until the deadline, or where there will be no more: false.
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

/// What the cutter has found for a follower.
enum Found {
    Item(Item),
    Long(Box<Long>, Cursor),
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.unregister(self.id, &self.armed);
    }
}
