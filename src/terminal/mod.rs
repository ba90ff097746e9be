//! What a terminal session shows: its last bytes, and each viewer's place in them.
//!
//! A terminal is no log of lines: what counts is what a screen needs. A viewer reads at its own pace, and is told when
//! it is so far behind that what it has not seen is gone.
//!
//! The kernel makes a terminal's output at some 200 MB/s, which fills any backlog while a viewer waits for a processor.
//! So a session that runs away from somebody who is reading is read more slowly meanwhile: who takes 8 MiB/s loses
//! nothing. Nobody else is waited for, and nobody for long: the session goes on at its own pace then.

pub(crate) mod ring;
pub(crate) mod session;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::model::RunEnd;
use crate::model::terminal_size::TerminalSize;
use crate::terminal::ring::Ring;

/// What a viewer that comes later gets to see (section 11).
pub const REPLAY: usize = 1 << 20;

/// How far behind a viewer may be…
const BEHIND: usize = 8 << 20;

/// …and how far while all sessions together hold more than [`TOTAL`] for those who are behind.
const BEHIND_IN_NEED: usize = 2 << 20;

/// See [`BEHIND_IN_NEED`].
const TOTAL: u64 = 64 << 20;

/// From here on behind, a viewer is waited for…
const LAG: u64 = REPLAY as u64;

/// …at this many bytes a second…
const RATE: u64 = 8 << 20;

/// …if it has taken something within this time.
const READS: Duration = Duration::from_secs(1);

/// A session waits for so long, in which it writes 240 MiB…
const PATIENCE: Duration = Duration::from_secs(30);

/// …and gains some of it back: one part in so many of the time that passes.
const REGAINED: u32 = 10;

/// A place that no stream reaches.
const NEVER: u64 = u64::MAX;

/// What all sessions hold beyond their replays, for viewers that are behind.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<AtomicU64>);

/// The output of one session.
#[derive(Debug)]
pub struct Terminal(Mutex<State>);

#[derive(Debug)]
struct State {
    backlog: Backlog,
    /// This session's part of it.
    part: u64,
    ring: Ring,
    window: TerminalSize,
    end: Option<RunEnd>,
    terminated: bool,
    forgotten: bool,
    viewers: BTreeMap<u64, Place>,
    last_viewer: u64,
    /// How long it has waited, less what it has gained back until then.
    waited: Duration,
    waited_at: Instant,
}

#[derive(Debug)]
struct Place {
    at: u64,
    /// It is not ready to be shown anything.
    held: bool,
    /// It is woken when the stream gets to here.
    wake_at: u64,
    waker: Waker,
    /// When it took something last.
    took: Instant,
}

impl Place {
    /// Whether it is behind, and reads.
    fn is_catching_up(&self, end: u64, now: Instant) -> bool {
        !self.held && end.saturating_sub(self.at) > LAG && now.saturating_duration_since(self.took) < READS
    }
}

/// What a viewer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seen {
    /// Bytes, which it has now seen.
    Bytes,
    /// Nothing new: its waker will be woken.
    Nothing,
    /// What it should see next is gone: it was too slow.
    Behind,
    /// More was written than is kept for it, and it is not ready.
    Overdue,
    /// It has seen all, and the session has ended.
    Ended(RunEnd),
    /// The session was ended over the API.
    Terminated,
}

impl Terminal {
    /// An empty one, whose backlog counts in `backlog`.
    pub fn new(window: TerminalSize, backlog: &Backlog) -> Terminal {
        Terminal(Mutex::new(State {
            backlog: backlog.clone(),
            part: 0,
            ring: Ring::new(REPLAY, BEHIND),
            window,
            end: None,
            terminated: false,
            forgotten: false,
            viewers: BTreeMap::new(),
            last_viewer: 0,
            waited: Duration::ZERO,
            waited_at: Instant::now(),
        }))
    }

    /// How long to leave the session alone that has written so many bytes in a row.
    pub fn pause(&self, bytes: usize) -> Option<Duration> {
        self.lock().pause(bytes, Instant::now())
    }

    /// Appends what the session has written.
    pub fn append(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let slowest = state.slowest();
        let most = state.backlog.most();
        state.ring.set_most(most);
        state.ring.append(bytes, slowest);
        state.count();
        let end = state.ring.end();
        for viewer in state.viewers.values_mut().filter(|viewer| viewer.wake_at <= end) {
            viewer.wake_at = NEVER;
            viewer.waker.wake_by_ref();
        }
    }

    /// Nothing more will be appended.
    pub fn finish(&self, end: RunEnd) {
        let mut state = self.lock();
        state.end = Some(end);
        state.wake_all();
    }

    /// Somebody has asked for its end: viewers go without waiting for it.
    pub fn terminate(&self) {
        let mut state = self.lock();
        state.terminated = true;
        state.wake_all();
    }

    /// It is found by nobody any more: who has not asked to see its end so far goes.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.forgotten = true;
        state.wake_all();
    }

    /// Bytes that it holds.
    pub fn held(&self) -> u64 {
        self.lock().ring.held()
    }

    /// Its size.
    pub fn window(&self) -> TerminalSize {
        self.lock().window
    }

    /// Notes its new size.
    pub fn set_window(&self, window: TerminalSize) {
        self.lock().window = window;
    }

    /// A viewer that is not ready yet. `waker` is woken when there may be something for it.
    pub fn view(self: &Arc<Self>, waker: impl Into<Waker>) -> Viewer {
        let waker = waker.into();
        let mut state = self.lock();
        state.last_viewer += 1;
        let id = state.last_viewer;
        let at = state.ring.end();
        state.viewers.insert(id, Place { at, held: true, wake_at: NEVER, waker, took: Instant::now() });
        Viewer { terminal: Arc::clone(self), id }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that died with the lock left nothing half done that would be worse than dying as well.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn slowest(&self) -> u64 {
        self.viewers.values().filter(|viewer| !viewer.held).map(|viewer| viewer.at).min().unwrap_or(NEVER)
    }

    fn pause(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        let end = self.ring.end();
        let waited_for = self.viewers.values().any(|place| place.is_catching_up(end, now));
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.waited_at, now));
        self.waited = self.waited.saturating_sub(passed / REGAINED);
        if !waited_for || self.waited >= PATIENCE {
            return None;
        }
        let pause = Duration::from_micros(bytes as u64 * 1_000_000 / RATE);
        self.waited += pause;
        Some(pause)
    }

    /// Says how much this session holds for those who are behind.
    fn count(&mut self) {
        let part = self.ring.held().saturating_sub(REPLAY as u64);
        self.backlog.change(std::mem::replace(&mut self.part, part), part);
    }

    fn wake_all(&self) {
        self.viewers.values().for_each(|viewer| viewer.waker.wake_by_ref());
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.backlog.change(self.part, 0);
    }
}

impl Backlog {
    /// What one session may hold just now.
    fn most(&self) -> usize {
        if self.0.load(Ordering::Relaxed) > TOTAL { BEHIND_IN_NEED } else { BEHIND }
    }

    fn change(&self, from: u64, to: u64) {
        self.0.fetch_add(to.wrapping_sub(from), Ordering::Relaxed);
    }
}

/// Sees all of a session from its replay on. Dropped, nothing is kept for it any more.
#[derive(Debug)]
pub struct Viewer {
    terminal: Arc<Terminal>,
    id: u64,
}

impl Viewer {
    /// Lets it see: the replay first.
    pub fn ready(&self) {
        let mut state = self.terminal.lock();
        let replay = state.ring.replay();
        if let Some(place) = state.viewers.get_mut(&self.id)
            && place.held
        {
            (place.held, place.at, place.took) = (false, replay, Instant::now());
        }
    }

    /// Appends up to `most` of the bytes that it has not seen to `into`.
    pub fn look(&self, most: usize, into: &mut Vec<u8>) -> Seen {
        let mut state = self.terminal.lock();
        let State { ring, end, terminated, forgotten, viewers, .. } = &mut *state;
        let Some(place) = viewers.get_mut(&self.id) else { return Seen::Behind };
        if *terminated || place.held && *forgotten {
            return Seen::Terminated;
        }
        if place.held {
            place.wake_at = place.at + REPLAY as u64 + 1;
            return if ring.end() >= place.wake_at { Seen::Overdue } else { Seen::Nothing };
        }
        match ring.read(place.at, most, into) {
            None => Seen::Behind,
            Some(at) if at > place.at => {
                (place.at, place.took) = (at, Instant::now());
                Seen::Bytes
            }
            Some(at) => match end {
                Some(end) => Seen::Ended(*end),
                None => {
                    place.wake_at = at + 1;
                    Seen::Nothing
                }
            },
        }
    }
}

impl Viewer {
    /// For one that cannot take more just now: whether it has to go all the same. Its waker is woken when it has.
    pub fn glance(&self) -> Seen {
        let mut state = self.terminal.lock();
        let State { ring, terminated, forgotten, viewers, .. } = &mut *state;
        let Some(place) = viewers.get_mut(&self.id) else { return Seen::Behind };
        if *terminated || place.held && *forgotten {
            return Seen::Terminated;
        }
        place.wake_at = place.at + BEHIND as u64 + 1;
        if ring.end() >= place.wake_at { Seen::Behind } else { Seen::Nothing }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let mut state = self.terminal.lock();
        state.viewers.remove(&self.id);
        let slowest = state.slowest();
        state.ring.trim(slowest);
        state.count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Exit;
    use std::os::fd::AsFd;
    use std::time::Instant;
    use tl_os::poll::{Events, Waker, wait};

    const END: RunEnd = RunEnd { exit: Exit::Code(0), timed_out: false, ended_at: 1 };

    fn terminal() -> Arc<Terminal> {
        Arc::new(Terminal::new(TerminalSize::default(), &Backlog::default()))
    }

    fn view(terminal: &Arc<Terminal>) -> (Viewer, Arc<Waker>) {
        let waker = Arc::new(Waker::new().unwrap());
        (terminal.view(waker.clone()), waker)
    }

    fn woken(waker: &Waker) -> bool {
        let woken = wait([(waker.as_fd(), Events::READ)], Some(Instant::now())).unwrap() == [Events::READ];
        waker.clear();
        woken
    }

    fn all(viewer: &Viewer) -> (Vec<u8>, Seen) {
        let mut out = Vec::new();
        loop {
            let seen = viewer.look(7, &mut out);
            if seen != Seen::Bytes {
                return (out, seen);
            }
        }
    }

    #[test]
    fn nothing_is_shown_before_it_is_asked_for_and_nothing_twice() {
        let terminal = terminal();
        terminal.append(b"before ");
        let (viewer, waker) = view(&terminal);
        assert_eq!(all(&viewer), (vec![], Seen::Nothing));
        terminal.append(b"while held ");
        assert!(!woken(&waker), "it would not be shown");
        viewer.ready();
        viewer.ready();
        assert_eq!(all(&viewer), (b"before while held ".to_vec(), Seen::Nothing));
        terminal.append(b"more");
        assert!(woken(&waker));
        terminal.append(b" and more");
        assert!(!woken(&waker), "it has been woken");
        viewer.ready();
        assert_eq!(all(&viewer), (b"more and more".to_vec(), Seen::Nothing));
        terminal.append(b".");
        terminal.finish(END);
        assert!(woken(&waker));
        assert_eq!(all(&viewer), (b".".to_vec(), Seen::Ended(END)));
        assert_eq!(all(&viewer), (vec![], Seen::Ended(END)));
        let (late, _) = view(&terminal);
        assert_eq!(all(&late).1, Seen::Nothing, "the end is held back as well");
        late.ready();
        assert_eq!(all(&late), (b"before while held more and more.".to_vec(), Seen::Ended(END)));
        let (later, _) = view(&terminal);
        terminal.forget();
        assert_eq!((all(&later).1, all(&late).1), (Seen::Terminated, Seen::Ended(END)), "who is ready sees it all");
        terminal.terminate();
        assert_eq!(all(&late).1, Seen::Terminated);
    }

    #[test]
    fn who_is_never_ready_is_overdue_after_as_much_as_is_kept() {
        let terminal = terminal();
        terminal.append(&vec![0; 3 * REPLAY]);
        let (viewer, waker) = view(&terminal);
        assert_eq!(all(&viewer).1, Seen::Nothing);
        terminal.append(&vec![1; REPLAY]);
        assert!(!woken(&waker));
        assert_eq!(all(&viewer).1, Seen::Nothing);
        terminal.append(&[1]);
        assert!(woken(&waker));
        assert_eq!(all(&viewer).1, Seen::Overdue);
    }

    #[test]
    fn who_is_too_slow_has_lost_and_others_have_not() {
        let terminal = terminal();
        let ((slow, waker), (quick, _)) = (view(&terminal), view(&terminal));
        slow.ready();
        quick.ready();
        assert_eq!(slow.glance(), Seen::Nothing);
        assert!(!woken(&waker));
        let mut seen = 0;
        for _ in 0..(REPLAY + BEHIND) / 100_000 + 2 {
            terminal.append(&[b'x'; 100_000]);
            let mut out = Vec::new();
            while quick.look(usize::MAX, &mut out) == Seen::Bytes {}
            seen += out.len();
        }
        assert!(woken(&waker));
        assert_eq!(slow.glance(), Seen::Behind);
        assert_eq!(slow.look(1, &mut Vec::new()), Seen::Behind);
        assert_eq!(quick.glance(), Seen::Nothing);
        assert_eq!(seen % 100_000, 0);
        drop(slow);
        let (late, _) = view(&terminal);
        late.ready();
        let mut out = Vec::new();
        assert_eq!(late.look(usize::MAX, &mut out), Seen::Bytes);
        assert_eq!(out.len(), REPLAY);
    }

    #[test]
    fn who_reads_is_waited_for_and_nobody_else() {
        let terminal = terminal();
        let ((reads, _), (other, _)) = (view(&terminal), view(&terminal));
        let now = Instant::now();
        let is_waited_for = |viewer: &Viewer, now: Instant| {
            let state = terminal.lock();
            state.viewers[&viewer.id].is_catching_up(state.ring.end(), now)
        };
        terminal.append(&vec![0; REPLAY]);
        reads.ready();
        terminal.append(&[0]);
        assert!(is_waited_for(&reads, now) && !is_waited_for(&other, now), "it is not ready");
        assert_eq!(terminal.pause(RATE as usize), Some(Duration::from_secs(1)));
        assert!(!is_waited_for(&reads, now + READS + READS), "it does not read");
        assert_eq!(reads.look(1, &mut Vec::new()), Seen::Bytes);
        assert_eq!(terminal.pause(1000), None, "it is not that far behind");
    }

    #[test]
    fn nobody_is_waited_for_without_end() {
        let terminal = terminal();
        let (viewer, _) = view(&terminal);
        viewer.ready();
        terminal.append(&vec![0; 2 * REPLAY]);
        let begun = Instant::now();
        // How many of these seconds it is waited for.
        let waited = |seconds: std::ops::Range<u64>| {
            let mut state = terminal.lock();
            let is_waited_for = |second: &u64| {
                let now = begun + Duration::from_secs(*second);
                state.viewers.get_mut(&viewer.id).unwrap().took = now;
                state.pause(RATE as usize, now).is_some()
            };
            seconds.filter(is_waited_for).count()
        };
        assert_eq!(waited(1..31), 30);
        assert!((1..10).contains(&waited(31..61)), "only what it has gained back");
        assert_eq!(waited(400..430), 30, "as at first");
    }

    #[test]
    fn all_sessions_together_hold_so_much() {
        let backlog = Backlog::default();
        let sessions: Vec<_> = (0..20).map(|_| Arc::new(Terminal::new(TerminalSize::default(), &backlog))).collect();
        let viewers: Vec<_> = sessions.iter().map(|terminal| view(terminal).0).collect();
        viewers.iter().for_each(Viewer::ready);
        for terminal in &sessions {
            (0..90).for_each(|_| terminal.append(&[b'x'; 100_000]));
        }
        let held: u64 = sessions.iter().map(|terminal| terminal.lock().ring.held()).sum();
        let replays = sessions.len() * BEHIND_IN_NEED;
        assert!(held <= TOTAL + (replays + BEHIND) as u64, "{held}");
        assert!(held > TOTAL, "{held}");
        assert_eq!(backlog.0.load(Ordering::Relaxed), held - (sessions.len() * REPLAY) as u64);
        drop(viewers);
        drop(sessions);
        assert_eq!(backlog.0.load(Ordering::Relaxed), 0);
    }
}
