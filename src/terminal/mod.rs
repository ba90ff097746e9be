//! The output of a terminal session: its last bytes, and the position of each viewer in them.
//!
//! The output is not split into lines, and only the last part is kept. A viewer reads at its own pace; one that falls
//! too far behind gets [`Seen::Behind`]: bytes that it has not read were dropped.
//!
//! A terminal produces about 200 MB/s, which fills any backlog while a viewer waits for a CPU. So the output thread
//! reads a session at 8 MiB/s while an active viewer is more than 1 MiB behind: a viewer that reads 8 MiB/s loses
//! nothing. The session does not wait for a viewer that does not read, nor for any viewer longer than 30 s in a row.

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

/// Number of bytes of earlier output that a new viewer sees (docs/api.md, Terminal sessions).
pub const REPLAY: usize = 1 << 20;

/// Number of bytes that a viewer may be behind.
const BEHIND: usize = 8 << 20;

/// Number of bytes that a viewer may be behind while all sessions together hold more than [`TOTAL`] for such viewers.
const BEHIND_REDUCED: usize = 2 << 20;

/// Number of bytes beyond their replays that all sessions may hold before [`BEHIND_REDUCED`] applies.
const TOTAL: u64 = 64 << 20;

/// The session waits for an active viewer that is more than this many bytes behind.
const LAG: u64 = REPLAY as u64;

/// Number of bytes per second that are read from a session while it waits for a viewer.
const RATE: u64 = 8 << 20;

/// A viewer is active if it has read bytes within this time.
const ACTIVE: Duration = Duration::from_secs(1);

/// Longest time that a session waits for viewers. 240 MiB are read meanwhile.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A session regains waiting time at this fraction of the elapsed time: 1 s per 10 s.
const REGAIN_DIVISOR: u32 = 10;

/// A position beyond all output.
const NEVER: u64 = u64::MAX;

/// Number of bytes that all sessions hold beyond their replays, for viewers that are behind.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<AtomicU64>);

/// The output of one session.
#[derive(Debug)]
pub struct Terminal(Mutex<State>);

#[derive(Debug)]
struct State {
    backlog: Backlog,
    /// This session's part of `backlog`, in bytes.
    part: u64,
    ring: Ring,
    size: TerminalSize,
    end: Option<RunEnd>,
    terminated: bool,
    forgotten: bool,
    viewers: BTreeMap<u64, ViewerState>,
    last_viewer: u64,
    /// Time that the session has waited for viewers, less the time regained until `waited_at`.
    waited: Duration,
    waited_at: Instant,
}

/// The session's state for one viewer.
#[derive(Debug)]
struct ViewerState {
    /// The position of the next byte to read.
    at: u64,
    /// It has not called [`Viewer::ready`] yet.
    held: bool,
    /// The end position of the output at which it is woken.
    wake_at: u64,
    waker: Waker,
    /// When it last read bytes.
    last_read: Instant,
}

impl ViewerState {
    /// Whether it is active and more than [`LAG`] bytes behind.
    fn is_catching_up(&self, end: u64, now: Instant) -> bool {
        !self.held && end.saturating_sub(self.at) > LAG && now.saturating_duration_since(self.last_read) < ACTIVE
    }
}

/// The result of [`Viewer::read`] and [`Viewer::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seen {
    /// Bytes were read.
    Bytes,
    /// There is nothing new. The waker will be woken.
    Nothing,
    /// The viewer was too slow: the next bytes were dropped.
    Behind,
    /// The viewer is not ready, and more output has been written than is kept for it.
    Overdue,
    /// The viewer has read everything, and the session has ended.
    Ended(RunEnd),
    /// The session was ended by a request.
    Terminated,
}

impl Terminal {
    /// A terminal without output. Bytes kept for viewers that are behind are counted in `backlog`.
    pub fn new(size: TerminalSize, backlog: &Backlog) -> Terminal {
        Terminal(Mutex::new(State {
            backlog: backlog.clone(),
            part: 0,
            ring: Ring::new(REPLAY, BEHIND),
            size,
            end: None,
            terminated: false,
            forgotten: false,
            viewers: BTreeMap::new(),
            last_viewer: 0,
            waited: Duration::ZERO,
            waited_at: Instant::now(),
        }))
    }

    /// How long to pause reading the session after `bytes` bytes were read, so that viewers catch up.
    pub fn pause(&self, bytes: usize) -> Option<Duration> {
        self.lock().pause(bytes, Instant::now())
    }

    /// Appends output of the session.
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

    /// Records the end of the session: no more output is appended.
    pub fn finish(&self, end: RunEnd) {
        self.change_and_wake_all(|state| state.end = Some(end));
    }

    /// Records that a request ends the session: viewers are disconnected at once.
    pub fn terminate(&self) {
        self.change_and_wake_all(|state| state.terminated = true);
    }

    /// Records that the session can no longer be looked up: viewers that are not ready are disconnected.
    pub fn forget(&self) {
        self.change_and_wake_all(|state| state.forgotten = true);
    }

    /// Number of bytes of output that are held.
    pub fn held(&self) -> u64 {
        self.lock().ring.held()
    }

    /// The size of the terminal.
    pub fn size(&self) -> TerminalSize {
        self.lock().size
    }

    /// Sets the recorded size.
    pub fn set_size(&self, size: TerminalSize) {
        self.lock().size = size;
    }

    /// A new viewer, not ready yet. `waker` is woken when [`Viewer::read`] may return something new.
    pub fn view(self: &Arc<Self>, waker: impl Into<Waker>) -> Viewer {
        let waker = waker.into();
        let mut state = self.lock();
        state.last_viewer += 1;
        let id = state.last_viewer;
        let at = state.ring.end();
        state.viewers.insert(id, ViewerState { at, held: true, wake_at: NEVER, waker, last_read: Instant::now() });
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
        // No panic leaves an update half done, so the state is usable after a panic of another thread.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn slowest(&self) -> u64 {
        self.viewers.values().filter(|viewer| !viewer.held).map(|viewer| viewer.at).min().unwrap_or(NEVER)
    }

    fn pause(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        let end = self.ring.end();
        let must_wait = self.viewers.values().any(|viewer| viewer.is_catching_up(end, now));
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.waited_at, now));
        self.waited = self.waited.saturating_sub(passed / REGAIN_DIVISOR);
        if !must_wait || self.waited >= MAX_WAIT {
            return None;
        }
        let pause = Duration::from_micros(bytes as u64 * 1_000_000 / RATE);
        self.waited += pause;
        Some(pause)
    }

    /// Updates the backlog with what this session holds for viewers that are behind.
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
    /// Number of bytes that one session may hold now.
    fn most(&self) -> usize {
        if self.0.load(Ordering::Relaxed) > TOTAL { BEHIND_REDUCED } else { BEHIND }
    }

    fn change(&self, from: u64, to: u64) {
        self.0.fetch_add(to.wrapping_sub(from), Ordering::Relaxed);
    }
}

/// A viewer of a session. While it is behind, the session keeps the output that it has not read, up to a bound. After
/// the viewer is dropped, nothing is kept for it.
#[derive(Debug)]
pub struct Viewer {
    terminal: Arc<Terminal>,
    id: u64,
}

impl Viewer {
    /// Lets the viewer read output, beginning with the replay.
    pub fn ready(&self) {
        let mut state = self.terminal.lock();
        let replay = state.ring.replay();
        if let Some(viewer) = state.viewers.get_mut(&self.id)
            && viewer.held
        {
            (viewer.held, viewer.at, viewer.last_read) = (false, replay, Instant::now());
        }
    }

    /// Appends up to `most` bytes that the viewer has not read yet to `into`.
    pub fn read(&self, most: usize, into: &mut Vec<u8>) -> Seen {
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
                (viewer.at, viewer.last_read) = (at, Instant::now());
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
    /// Checks, without reading, whether the viewer is too far behind or the session was terminated. The waker is woken
    /// when that
    pub fn check(&self) -> Seen {
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
            let seen = viewer.read(7, &mut out);
            if seen != Seen::Bytes {
                return (out, seen);
            }
        }
    }

    #[test]
    fn output_is_read_once_and_only_after_the_viewer_is_ready() {
        let terminal = terminal();
        terminal.append(b"before ");
        let (viewer, waker) = view(&terminal);
        assert_eq!(all(&viewer), (vec![], Seen::Nothing));
        terminal.append(b"while held ");
        assert!(!woken(&waker), "it is not ready");
        viewer.ready();
        viewer.ready();
        assert_eq!(all(&viewer), (b"before while held ".to_vec(), Seen::Nothing));
        terminal.append(b"more");
        assert!(woken(&waker));
        terminal.append(b" and more");
        assert!(!woken(&waker), "it was woken and has not read since");
        viewer.ready();
        assert_eq!(all(&viewer), (b"more and more".to_vec(), Seen::Nothing));
        terminal.append(b".");
        terminal.finish(END);
        assert!(woken(&waker));
        assert_eq!(all(&viewer), (b".".to_vec(), Seen::Ended(END)));
        assert_eq!(all(&viewer), (vec![], Seen::Ended(END)));
        let (late, _) = view(&terminal);
        assert_eq!(all(&late).1, Seen::Nothing, "the end is not reported before the viewer is ready");
        late.ready();
        assert_eq!(all(&late), (b"before while held more and more.".to_vec(), Seen::Ended(END)));
        let (later, _) = view(&terminal);
        terminal.forget();
        assert_eq!(
            (all(&later).1, all(&late).1),
            (Seen::Terminated, Seen::Ended(END)),
            "only viewers that are not ready are disconnected"
        );
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
    fn a_viewer_that_is_too_slow_loses_output_and_others_do_not() {
        let terminal = terminal();
        let ((slow, waker), (quick, _)) = (view(&terminal), view(&terminal));
        slow.ready();
        quick.ready();
        assert_eq!(slow.check(), Seen::Nothing);
        assert!(!woken(&waker));
        let mut seen = 0;
        for _ in 0..(REPLAY + BEHIND) / 100_000 + 2 {
            terminal.append(&[b'x'; 100_000]);
            let mut out = Vec::new();
            while quick.read(usize::MAX, &mut out) == Seen::Bytes {}
            seen += out.len();
        }
        assert!(woken(&waker));
        assert_eq!(slow.check(), Seen::Behind);
        assert_eq!(slow.read(1, &mut Vec::new()), Seen::Behind);
        assert_eq!(quick.check(), Seen::Nothing);
        assert_eq!(seen % 100_000, 0);
        drop(slow);
        let (late, _) = view(&terminal);
        late.ready();
        let mut out = Vec::new();
        assert_eq!(late.read(usize::MAX, &mut out), Seen::Bytes);
        assert_eq!(out.len(), REPLAY);
    }

    #[test]
    fn the_session_waits_only_for_an_active_viewer_that_is_behind() {
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
        assert!(!is_waited_for(&reads, now + ACTIVE + ACTIVE), "it does not read");
        assert_eq!(reads.read(1, &mut Vec::new()), Seen::Bytes);
        assert_eq!(terminal.pause(1000), None, "it is not more than 1 MiB behind");
    }

    #[test]
    fn the_session_waits_at_most_30_s_in_a_row() {
        let terminal = terminal();
        let (viewer, _) = view(&terminal);
        viewer.ready();
        terminal.append(&vec![0; 2 * REPLAY]);
        let begun = Instant::now();
        // In how many of these seconds the session waits.
        let waited = |seconds: std::ops::Range<u64>| {
            let mut state = terminal.lock();
            let is_waited_for = |second: &u64| {
                let now = begun + Duration::from_secs(*second);
                state.viewers.get_mut(&viewer.id).unwrap().last_read = now;
                state.pause(RATE as usize, now).is_some()
            };
            seconds.filter(is_waited_for).count()
        };
        assert_eq!(waited(1..31), 30);
        assert!((1..10).contains(&waited(31..61)), "only the regained time");
        assert_eq!(waited(400..430), 30, "all time is regained");
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
        let replays = sessions.len() * BEHIND_REDUCED;
        assert!(held <= TOTAL + (replays + BEHIND) as u64, "{held}");
        assert!(held > TOTAL, "{held}");
        assert_eq!(backlog.0.load(Ordering::Relaxed), held - (sessions.len() * REPLAY) as u64);
        drop(viewers);
        drop(sessions);
        assert_eq!(backlog.0.load(Ordering::Relaxed), 0);
    }
}
