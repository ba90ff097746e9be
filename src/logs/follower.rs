//! Following a log: a cursor of one's own, and a wake when there is more.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::cutter::{Cutter, Event};
use super::log::{Armed, Bound, OutputLog};
use super::{From, Item, View, tail};
use crate::os::poll::{self, Events, Waker};

/// Reads a log at its own pace: nothing is lost or given twice, however slow it is, and nobody else notices.
///
/// It holds no descriptor, and no memory to speak of while there is nothing to read.
pub struct Follower {
    log: Arc<OutputLog>,
    cutter: Cutter,
    id: u64,
    armed: Arc<Armed>,
    /// [`Item::End`] was given.
    done: bool,
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
    /// With [`From::Tail`] it reads some of the log at once, the more the more lines are asked for.
    pub fn follow(self: &Arc<Self>, view: View, from: From, waker: Arc<Waker>) -> Follower {
        let cutter = match from {
            From::Beginning => Cutter::from_beginning(self, view, Bound::Live),
            From::After(cursor) => Cutter::resume(self, view, Bound::Live, cursor),
            From::Tail(n) => {
                let (mut cutter, _) = tail::last(self, view, n, self.live_snapshot(), false);
                cutter.set_bound(Bound::Live);
                cutter
            }
        };
        let (id, armed) = self.register(waker);
        Follower { log: Arc::clone(self), cutter, id, armed, done: false, failure: None }
    }
}

impl Follower {
    /// The next item, or None when there is none yet (the waker will be woken). None for ever after [`Item::End`].
    pub fn try_next(&mut self) -> Option<Item> {
        if self.done {
            return None;
        }
        let mut looked_again = false;
        loop {
            let item = match self.cutter.next() {
                Event::Line(line, cursor) => Item::Line(line, cursor),
                Event::Gap(lost_bytes, cursor) => Item::Gap { lost_bytes, cursor },
                Event::Synced => continue,
                Event::Failed(error) => {
                    self.failure = Some(error);
                    // Nobody else will do it.
                    self.armed.waker.wake();
                    return None;
                }
                Event::AtEnd => match self.log.ended_at(self.cutter.at()) {
                    Some(end) => {
                        self.done = true;
                        self.cutter.release();
                        Item::End(end, self.cutter.cursor())
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
            return Some(item);
        }
    }

    /// The next item; None at the deadline, and at once after [`Item::End`]. Polls the waker, and takes its wakes back.
    ///
    /// # Errors
    /// When the log cannot be read now, for want of descriptors or memory. Nothing is lost: call it again.
    pub fn next(&mut self, deadline: Option<Instant>) -> io::Result<Option<Item>> {
        loop {
            if let Some(item) = self.try_next() {
                return Ok(Some(item));
            }
            if let Some(error) = self.failure.take() {
                return Err(error);
            }
            if self.done {
                return Ok(None);
            }
            let [events] = poll::wait([(self.armed.waker.as_fd(), Events::READ)], deadline)?;
            if !events.any(Events::READ) {
                return Ok(None);
            }
            self.armed.waker.clear();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.unregister(self.id, &self.armed);
    }
}
