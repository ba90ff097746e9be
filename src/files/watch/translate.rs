//! Makes changes of the events of inotify, and says what else must be done for them. Does no I/O.
//!
//! - The two halves of a move are paired by their cookie. The second half follows at once in most cases, but other
//!   events may come between, and it may not have been read yet: the first one then waits for it, and all later events
//!   with it, for [`PAIR_WAIT`] at most. Both halves are written while the kernel holds the locks of both directories,
//!   so another event about the entries of the first one says that no second half will come.
//! - The exchange of two entries (RENAME_EXCHANGE) is two moves, back and forth, of which only halves may be in the tree.
//!   So a move that takes back the one before, at the same time, becomes a look at the names.
//! - Consecutive events `modified` of the same file become one.
//! - The [table](Table) of directories follows what the events say. The events say only names, and a directory may have
//!   been renamed and another one made in its place before its event is read. So each event that gives a directory a
//!   name asks the caller to [look](Step::Look) which directory has it now. Each name that a directory has at last was
//!   given by some event, so after all events the table is right.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::fresh::Fresh;
use super::raw::{self, RawEvent};
use super::table::{FileId, Table};

/// How long the first half of a move waits for the second one.
pub(super) const PAIR_WAIT: Duration = Duration::from_millis(20);

/// Maximum number of events that are held at a time. No more are read before most of them are translated.
pub(super) const MAX_EVENTS: usize = 1_024;

/// A type of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// An entry was created, or moved in from elsewhere.
    Created,
    /// The content of a file, or the mode, owner or times of an entry have changed.
    Modified,
    /// An entry was removed, or moved elsewhere.
    Deleted,
    /// An entry was moved, and both places are watched.
    Moved,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) kind: ChangeKind,
    /// The path below the root; empty for the root itself.
    pub(super) path: Vec<u8>,
    /// The new path.
    pub(super) to: Option<Vec<u8>>,
    pub(super) is_dir: bool,
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Report it.
    Change(Change),
    /// See which directory has this name in a watched one now. If it is not the one of the table, watch it, and report what
    /// is in it.
    Look { parent: i32, name: Box<[u8]>, after: After },
    /// See whether the path of the request still leads to the root, and report that the root was modified if it does and
    /// that is so.
    CheckRoot { is_modified: bool },
    /// The root is gone: nothing more will happen.
    RootGone,
    /// Events are missing.
    Lost,
}

/// The event after which a name is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// A directory got the name.
    Created,
    /// A directory of the tree got the name. If it is another one than the table says, it was not that which was reported
    /// as moved: that is reported as deleted, and this one as created.
    MovedTo,
    /// A directory, which the table had as this one, lost the name. If it still has it, it was not the one that was moved:
    /// it is reported as created.
    MovedFrom(FileId),
    /// Two entries may have exchanged their names: what has this one now, of any type, is reported as created.
    Exchanged,
}

/// The result of [`Translator::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Step(Step),
    /// All events are translated.
    Nothing,
    /// Add more events, or come back at this time.
    Wait(Instant),
}

/// What is known of the second half of a move.
enum Pair {
    /// Its index in the queue.
    At(usize),
    /// It will not come.
    Absent,
    NotYet,
}

/// The state of one request.
#[derive(Debug)]
pub(super) struct Translator {
    pub(super) table: Table,
    pub(super) fresh: Fresh,
    /// Directories below the root are watched.
    is_recursive: bool,
    root_is_dir: bool,
    /// The watch of the directory that contains the root.
    above: Option<i32>,
    queue: VecDeque<RawEvent>,
    steps: VecDeque<Step>,
    /// When the first event of the queue no longer waits for its second half, and how much of the queue was searched.
    waits: Option<(Instant, usize)>,
    /// The last change, if it is `modified`: watch and name.
    modified: Option<(i32, Box<[u8]>)>,
    /// The last change of entries, if it is a move.
    last_move: Option<Move>,
}

/// A move: watches and names, when it was translated, and whether it is of a directory. Nothing is known of where it came
/// from if that is not in the tree.
#[derive(Debug)]
struct Move {
    from: Option<(i32, Box<[u8]>)>,
    to: (i32, Box<[u8]>),
    at: Instant,
    is_dir: bool,
}

impl Translator {
    pub(super) fn new(table: Table, is_recursive: bool, root_is_dir: bool, above: Option<i32>) -> Translator {
        Translator {
            table,
            fresh: Fresh::default(),
            is_recursive,
            root_is_dir,
            above,
            queue: VecDeque::new(),
            steps: VecDeque::new(),
            waits: None,
            modified: None,
            last_move: None,
        }
    }

    /// Whether there is room for more events.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < MAX_EVENTS
    }

    /// Adds the events that were read, of which `before` bytes precede.
    pub(super) fn add(&mut self, bytes: &[u8], before: u64) {
        raw::parse(bytes, before, &mut self.queue);
        // What was reported before may have been sent by now, so the next change of the file is another one.
        self.modified = None;
    }

    /// The next step.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return Next::Step(step);
            }
            let Some(first) = self.queue.front() else { return Next::Nothing };
            if !first.is(raw::MOVED_FROM) || !self.table.is_placed(first.wd) {
                if let Some(event) = self.queue.pop_front() {
                    self.translate(event, now);
                }
                continue;
            }
            let pair = match self.find_pair() {
                Pair::At(index) => Some(index),
                Pair::Absent => None,
                Pair::NotYet => {
                    let (until, _) = *self.waits.get_or_insert((now + PAIR_WAIT, 1));
                    if now < until && self.has_room() {
                        self.waits = Some((until, self.queue.len()));
                        return Next::Wait(until);
                    }
                    None
                }
            };
            self.waits = None;
            let to = pair.and_then(|index| self.queue.remove(index));
            if let Some(from) = self.queue.pop_front() {
                self.moved(from, to, now);
            }
        }
    }

    /// Looks for the second half of the move that the first event begins.
    fn find_pair(&self) -> Pair {
        let Some(from) = self.queue.front() else { return Pair::Absent };
        let searched = self.waits.map_or(1, |(_, searched)| searched);
        for (index, event) in self.queue.iter().enumerate().skip(searched) {
            if event.is(raw::MOVED_TO) && event.cookie == from.cookie {
                // If its directory is not, or no longer, one of the tree, the entry has left the tree.
                return if self.table.is_placed(event.wd) { Pair::At(index) } else { Pair::Absent };
            }
            if event.is(raw::Q_OVERFLOW) || event.wd == from.wd && event.is(raw::ENTRIES | raw::IGNORED) {
                return Pair::Absent;
            }
        }
        Pair::NotYet
    }

    /// Translates any event but the first half of a move.
    fn translate(&mut self, event: RawEvent, now: Instant) {
        if event.is(raw::ENTRIES) {
            self.last_move = None;
        }
        if event.is(raw::Q_OVERFLOW) {
            self.steps.push_back(Step::Lost);
            return;
        }
        if Some(event.wd) == self.above && event.is(raw::ENTRIES) {
            self.steps.push_back(Step::CheckRoot { is_modified: false });
        }
        if event.wd == self.table.root() && (event.name.is_empty() || !self.root_is_dir) {
            self.about_root(&event);
        } else if event.name.is_empty() {
            self.about_directory(&event);
        } else if event.is(raw::CREATE | raw::MOVED_TO) {
            self.created(event, now);
        } else if event.is(raw::DELETE) {
            self.deleted(event);
        } else if event.is(raw::MODIFY | raw::ATTRIB) {
            self.modified(event);
        }
    }

    /// An event about the root itself.
    fn about_root(&mut self, event: &RawEvent) {
        if event.is(raw::DELETE_SELF | raw::MOVE_SELF | raw::UNMOUNT | raw::IGNORED) {
            self.steps.push_back(Step::RootGone);
        } else if event.is(raw::ATTRIB) {
            // A file that is removed while it is open has one link less.
            self.modified = None;
            self.steps.push_back(Step::CheckRoot { is_modified: true });
        } else if event.is(raw::MODIFY) {
            self.modified(RawEvent { name: Box::default(), ..event.clone() });
        }
    }

    /// An event about another directory itself. What its parent reports as well is left out.
    fn about_directory(&mut self, event: &RawEvent) {
        if !self.table.has(event.wd) {
            return;
        }
        if event.is(raw::UNMOUNT) {
            // What the mount point covered is visible again.
            self.steps.push_back(Step::Lost);
        }
        if event.is(raw::UNMOUNT | raw::IGNORED) {
            self.table.remove(event.wd);
        }
    }

    fn created(&mut self, event: RawEvent, now: Instant) {
        if event.is(raw::MOVED_TO) {
            let to = (event.wd, event.name.clone());
            self.last_move = Some(Move { from: None, to, at: now, is_dir: event.is_dir() });
        }
        let is_reported = self.fresh.take(event.wd, &event.name, event.end);
        if !is_reported {
            self.report(ChangeKind::Created, &event, None);
        }
        self.look(event.wd, event.name, event.mask, After::Created);
    }

    fn modified(&mut self, event: RawEvent) {
        if self.modified.as_ref().is_none_or(|(wd, name)| (*wd, &**name) != (event.wd, &*event.name)) {
            self.report(ChangeKind::Modified, &event, None);
            self.modified = Some((event.wd, event.name));
        }
    }

    fn deleted(&mut self, event: RawEvent) {
        self.fresh.take(event.wd, &event.name, event.end);
        self.report(ChangeKind::Deleted, &event, None);
        if let Some(child) = self.table.child(event.wd, &event.name).filter(|_| event.is_dir()) {
            self.table.remove(child);
        }
    }

    /// A move. Without a second half, the entry has left the tree.
    fn moved(&mut self, from: RawEvent, to: Option<RawEvent>, now: Instant) {
        self.fresh.take(from.wd, &from.name, from.end);
        let last = self.last_move.take().filter(|last| now < last.at + PAIR_WAIT);
        let child = self.table.child(from.wd, &from.name).filter(|_| from.is_dir());
        let id = child.and_then(|child| self.table.id(child));
        let from_name = (from.wd, from.name.clone());
        let Some(to) = to else {
            self.report(ChangeKind::Deleted, &from, None);
            if let Some(child) = child {
                self.table.remove(child);
            }
            return match last {
                Some(last) if last.from.is_none() && last.to == from_name => self.look_exchanged([from_name]),
                _ => self.look_from(from, id),
            };
        };
        self.fresh.take(to.wd, &to.name, to.end);
        let to_name = (to.wd, to.name.clone());
        if child.is_some_and(|child| self.table.is_in(to.wd, child)) {
            // No directory is moved into itself: an earlier event was taken for one about another directory.
            self.steps.push_back(Step::Lost);
        }
        // Taken before the rename, which changes the paths.
        let moved = self.change(ChangeKind::Moved, &from, Some(&to));
        let is_known = child.is_some() && self.table.rename((from.wd, &from.name), (to.wd, &to.name));
        if let Some(last) = last.filter(|last| last.from.as_ref() == Some(&to_name) && last.to == from_name) {
            let mask = if last.is_dir { raw::ISDIR } else { 0 };
            self.report(ChangeKind::Deleted, &RawEvent { mask, ..from }, None);
            return self.look_exchanged([to_name, from_name]);
        }
        self.push(moved);
        self.last_move = Some(Move { from: Some(from_name), to: to_name, at: now, is_dir: from.is_dir() });
        self.look(to.wd, to.name, to.mask, if is_known { After::MovedTo } else { After::Created });
        self.look_from(from, id);
    }

    fn look_exchanged<const N: usize>(&mut self, names: [(i32, Box<[u8]>); N]) {
        let steps = names.map(|(parent, name)| Step::Look { parent, name, after: After::Exchanged });
        self.steps.extend(steps);
    }

    fn look_from(&mut self, from: RawEvent, id: Option<FileId>) {
        if let Some(id) = id {
            self.look(from.wd, from.name, from.mask, After::MovedFrom(id));
        }
    }

    fn look(&mut self, parent: i32, name: Box<[u8]>, mask: u32, after: After) {
        if self.is_recursive && mask & raw::ISDIR != 0 && self.table.is_placed(parent) {
            self.steps.push_back(Step::Look { parent, name, after });
        }
    }

    /// Reports a change, unless its directory has no place in the tree.
    fn report(&mut self, kind: ChangeKind, event: &RawEvent, to: Option<&RawEvent>) {
        let change = self.change(kind, event, to);
        self.push(change);
    }

    fn push(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            self.modified = None;
            self.steps.push_back(Step::Change(change));
        }
    }

    fn change(&self, kind: ChangeKind, event: &RawEvent, to: Option<&RawEvent>) -> Option<Change> {
        let path = self.table.path(event.wd, &event.name)?;
        let to = to.and_then(|to| self.table.path(to.wd, &to.name));
        Some(Change { kind, path, to, is_dir: event.is_dir() })
    }
}
