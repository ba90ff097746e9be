//! The output of a terminal session: its last bytes, and the position of each viewer in them.
//!
//! It is not cut into lines, and only as much is kept as a screen needs. A viewer reads at its own pace; one that is too far behind
//! is told that bytes it has not seen are gone.
//!
//! A terminal gives some 200 MB/s, which fills any backlog while a viewer waits for a processor. So the output thread reads a
//! session at 8 MiB/s while a viewer that reads is more than 1 MiB behind: a viewer that takes 8 MiB/s loses nothing. A viewer that
//! does not read is not waited for, and no viewer for more than 30 s in a row.

pub(crate) mod ring;
pub(crate) mod session;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::model::RunEnd;
use crate::model::terminal_size::TerminalSize;
use crate::pending::wake;
use crate::terminal::ring::Ring;

/// Bytes of earlier output that a new viewer sees (docs/api.md, Terminal sessions).
pub const REPLAY: usize = 1 << 20;

/// Bytes that a viewer may be behind.
const BEHIND: usize = 8 << 20;

/// The same while all sessions together hold more than [`TOTAL`] for viewers that are behind.
const BEHIND_IN_NEED: usize = 2 << 20;

/// Bytes beyond their replays that all sessions may hold before [`BEHIND_IN_NEED`] applies.
const TOTAL: u64 = 64 << 20;

/// A viewer that is more bytes behind than this is waited for, if it reads.
const LAG: u64 = REPLAY as u64;

/// Bytes per second that are read from a session while a viewer is waited for.
const RATE: u64 = 8 << 20;

/// A viewer reads if it has taken bytes within this time.
const READS: Duration = Duration::from_secs(1);

/// Time that a session waits for viewers; 240 MiB are read meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session regains one part in this many of the time that passes as time to wait.
const REGAINED: u32 = 10;

/// A position that no output reaches.
const NEVER: u64 = u64::MAX;

/// Bytes that all sessions hold beyond their replays, for viewers that are behind.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<AtomicU64>);

/// The output of one session.
#[derive(Debug)]
pub struct Terminal(Mutex<State>);

#[derive(Debug)]
struct State {
    backlog: Backlog,
    /// The part of `backlog` that is this session's.
    part: u64,
    ring: Ring,
    window: TerminalSize,
    end: Option<RunEnd>,
    terminated: bool,
    forgotten: bool,
    viewers: BTreeMap<u64, ViewerState>,
    last_viewer: u64,
    /// Time that the session has waited, less what it had regained at `waited_at`.
    waited: Duration,
    waited_at: Instant,
}

/// What the session knows of one viewer.
#[derive(Debug)]
struct ViewerState {
    /// The position of the next byte that it sees.
    at: u64,
    /// It is not ready to see anything.
    held: bool,
    /// The position of the output at which it is woken.
    wake_at: u64,
    waker: Waker,
    /// When it last took bytes.
    took: Instant,
}

impl ViewerState {
    /// Whether it is more than [`LAG`] behind, and reads.
    fn is_catching_up(&self, end: u64, now: Instant) -> bool {
        !self.held && end.saturating_sub(self.at) > LAG && now.saturating_duration_since(self.took) < READS
    }
}

/// What a viewer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seen {
    /// Bytes.
    Bytes,
    /// Nothing new. Its waker will be woken.
    Nothing,
    /// The bytes that it would see next are gone: it was too slow.
    Behind,
    /// It is not ready, and more has been written than is kept for it.
    Overdue,
    /// It has seen everything, and the session has ended.
    Ended(RunEnd),
    /// The session was ended over the API.
    Terminated,
}

impl Terminal {
    /// A terminal without output, whose backlog counts in `backlog`.
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

    /// How long the session must not be read after `bytes` bytes in a row, so that viewers catch up.
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
        let mut wakers = Vec::new();
        for viewer in state.viewers.values_mut().filter(|viewer| viewer.wake_at <= end) {
            viewer.wake_at = NEVER;
            wakers.push(viewer.waker.clone());
        }
        drop(state);
        wakers.iter().for_each(wake);
    }

    /// The session has ended: nothing more is appended.
    pub fn finish(&self, end: RunEnd) {
        self.change_and_wake_all(|state| state.end = Some(end));
    }

    /// A client has asked for the end of the session: viewers are disconnected without waiting for it.
    pub fn terminate(&self) {
        self.change_and_wake_all(|state| state.terminated = true);
    }

    /// The session can no longer be looked up: viewers that are not ready are disconnected.
    pub fn forget(&self) {
        self.change_and_wake_all(|state| state.forgotten = true);
    }

    /// Bytes of output that are held.
    pub fn held(&self) -> u64 {
        self.lock().ring.held()
    }

    /// The size of the terminal.
    pub fn window(&self) -> TerminalSize {
        self.lock().window
    }

    /// Notes a new size.
    pub fn set_window(&self, window: TerminalSize) {
        self.lock().window = window;
    }

    /// A new viewer, not ready yet. `waker` is woken when there may be something to see.
    pub fn view(self: &Arc<Self>, waker: impl Into<Waker>) -> Viewer {
        let waker = waker.into();
        let mut state = self.lock();
        state.last_viewer += 1;
        let id = state.last_viewer;
        let at = state.ring.end();
        state.viewers.insert(id, ViewerState { at, held: true, wake_at: NEVER, waker, took: Instant::now() });
        Viewer { terminal: Arc::clone(self), id }
    }

    /// Changes the state and wakes all viewers, without the lock: a waker may drop the viewer that it belongs to.
    fn change_and_wake_all(&self, change: impl FnOnce(&mut State)) {
        let wakers: Vec<Waker> = {
            let mut state = self.lock();
            change(&mut state);
            state.viewers.values().map(|viewer| viewer.waker.clone()).collect()
        };
        wakers.iter().for_each(wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No update is left half done by a panic; ending this thread as well would not help.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn slowest(&self) -> u64 {
        self.viewers.values().filter(|viewer| !viewer.held).map(|viewer| viewer.at).min().unwrap_or(NEVER)
    }

    fn pause(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        let end = self.ring.end();
        let waited_for = self.viewers.values().any(|viewer| viewer.is_catching_up(end, now));
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.waited_at, now));
        self.waited = self.waited.saturating_sub(passed / REGAINED);
        if !waited_for || self.waited >= PATIENCE {
            return None;
        }
        let pause = Duration::from_micros(bytes as u64 * 1_000_000 / RATE);
        self.waited += pause;
        Some(pause)
    }

    /// Counts what this session holds for viewers that are behind.
    fn count(&mut self) {
        let part = self.ring.held().saturating_sub(REPLAY as u64);
        self.backlog.change(std::mem::replace(&mut self.part, part), part);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.backlog.change(self.part, 0);
    }
}

impl Backlog {
    /// Bytes that one session may hold now.
    fn most(&self) -> usize {
        if self.0.load(Ordering::Relaxed) > TOTAL { BEHIND_IN_NEED } else { BEHIND }
    }

    fn change(&self, from: u64, to: u64) {
        self.0.fetch_add(to.wrapping_sub(from), Ordering::Relaxed);
    }
}

/// A viewer of a session. While it is behind, the session keeps what it has not seen, up to a bound; dropped, it keeps nothing.
#[derive(Debug)]
pub struct Viewer {
    terminal: Arc<Terminal>,
    id: u64,
}

impl Viewer {
    /// From now on the viewer sees output, beginning with the replay.
    pub fn ready(&self) {
        let mut state = self.terminal.lock();
        let replay = state.ring.replay();
        if let Some(viewer) = state.viewers.get_mut(&self.id)
            && viewer.held
        {
            (viewer.held, viewer.at, viewer.took) = (false, replay, Instant::now());
        }
    }

    /// Appends up to `most` of the bytes that it has not seen to `into`.
    pub fn look(&self, most: usize, into: &mut Vec<u8>) -> Seen {
        let mut state = self.terminal.lock();
        let State { ring, end, terminated, forgotten, viewers, .. } = &mut *state;
        let Some(viewer) = viewers.get_mut(&self.id) else { return Seen::Behind };
        if *terminated || viewer.held && *forgotten {
            return Seen::Terminated;
        }
        if viewer.held {
            viewer.wake_at = viewer.at + REPLAY as u64 + 1;
            return if ring.end() >= viewer.wake_at { Seen::Overdue } else { Seen::Nothing };
        }
        match ring.read(viewer.at, most, into) {
            None => Seen::Behind,
            Some(at) if at > viewer.at => {
                (viewer.at, viewer.took) = (at, Instant::now());
                Seen::Bytes
            }
            Some(at) => match end {
                Some(end) => Seen::Ended(*end),
                None => {
                    viewer.wake_at = at + 1;
                    Seen::Nothing
                }
            },
        }
    }
}

impl Viewer {
    /// Without taking bytes: whether the viewer is too far behind, or has to end. Its waker is woken when that happens.
    pub fn glance(&self) -> Seen {
        let mut state = self.terminal.lock();
        let State { ring, terminated, forgotten, viewers, .. } = &mut *state;
        let Some(viewer) = viewers.get_mut(&self.id) else { return Seen::Behind };
        if *terminated || viewer.held && *forgotten {
            return Seen::Terminated;
        }
        viewer.wake_at = viewer.at + BEHIND as u64 + 1;
        if ring.end() >= viewer.wake_at { Seen::Behind } else { Seen::Nothing }
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
    fn a_viewer_that_is_never_ready_is_overdue_after_a_replay() {
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
    fn a_viewer_that_is_too_slow_loses_its_position_and_others_do_not() {
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
    fn only_a_viewer_that_reads_is_waited_for() {
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
    fn no_viewer_is_waited_for_longer_than_the_patience() {
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
    fn all_sessions_together_hold_a_bounded_backlog() {
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
