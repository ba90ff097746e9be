//! [`Pending`]: a result that another thread will deliver.

pub(crate) mod mailbox;
pub(crate) mod parker;

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::error::Error;

/// The result of an operation that the supervisor carries out on its own thread. The `begin_…` methods return it.
///
/// Wait for the result with [`wait`](Pending::wait) or [`wait_until`](Pending::wait_until), poll for it with
/// [`try_take`](Pending::try_take) when the waker set by [`set_waker`](Pending::set_waker) is woken, or await it: a
/// `Pending` is a [`Future`]. The result can be taken once. Dropping a `Pending` discards the result; the operation
/// continues.
///
/// ```
/// use std::time::{Duration, Instant};
/// use tl_supervisor::{ProcessSpec, Supervisor, Target, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let handle = supervisor.handle();
///
/// let (unit, starting) = handle.begin_start(ProcessSpec::command("sleep").args(["60"]).build()?);
/// let started = starting.wait_until(Instant::now() + Duration::from_secs(30)).expect("it starts at once")?;
/// assert_eq!(started.info.handle, unit);
/// handle.begin_kill(&Target::Unit(unit)).wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the operation continues, but its result is lost"]
pub struct Pending<T>(Arc<Shared<T>>);

/// Delivers the result of a [`Pending`]. Dropped without a result, it delivers [`Error::Internal`].
pub(crate) struct ReplySender<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    delivered: Condvar,
}

enum State<T> {
    Waiting {
        waker: Option<Waker>,
        /// A thread sleeps until the delivery, or has slept. Otherwise none need be woken, which is a system call.
        has_sleeper: bool,
    },
    Delivered(Result<T, Error>),
    Taken,
}

/// A sender and the [`Pending`] that receives its result.
pub(crate) fn pending<T>() -> (ReplySender<T>, Pending<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State::Waiting { waker: None, has_sleeper: false }),
        delivered: Condvar::new(),
    });
    (ReplySender(Arc::clone(&shared)), Pending(shared))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, result: impl FnOnce() -> Result<T, Error>) {
        let mut state = self.lock();
        if let State::Waiting { waker, has_sleeper } = &mut *state {
            let (waker, has_sleeper) = (waker.take(), *has_sleeper);
            *state = State::Delivered(result());
            drop(state);
            // Several threads may share the `Pending` and wait for it.
            if has_sleeper {
                self.delivered.notify_all();
            }
            if let Some(waker) = waker {
                wake(&waker);
            }
        }
    }
}

impl<T> State<T> {
    fn take(&mut self) -> Option<Result<T, Error>> {
        match std::mem::replace(self, State::Taken) {
            State::Delivered(result) => Some(result),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl<T> ReplySender<T> {
    /// Delivers the result. Never blocks. If the [`Pending`] was dropped, the result is discarded.
    pub(crate) fn send(self, result: Result<T, Error>) {
        self.0.deliver(|| result);
    }
}

impl<T> Drop for ReplySender<T> {
    fn drop(&mut self) {
        self.0.deliver(|| Err(Error::internal("the thread that carries out the request has ended")));
    }
}

impl<T> Pending<T> {
    /// Blocks until the result is available.
    ///
    /// # Errors
    /// The error of the operation, or [`Error::Internal`] when the thread that carries it out has ended, or when the
    /// result was taken before.
    pub fn wait(self) -> Result<T, Error> {
        let mut state = self.0.lock();
        while let State::Waiting { has_sleeper, .. } = &mut *state {
            *has_sleeper = true;
            state = self.0.delivered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.take().unwrap_or_else(|| Err(taken()))
    }

    /// Blocks until the result is available. Returns None if `deadline` passes first, or if the result was already
    /// taken.
    pub fn wait_until(&self, deadline: Instant) -> Option<Result<T, Error>> {
        let mut state = self.0.lock();
        while let State::Waiting { has_sleeper, .. } = &mut *state {
            *has_sleeper = true;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (state, _) = self.0.delivered.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        state.take()
    }

    /// The result, if it is available and was not taken before. Never blocks.
    pub fn try_take(&self) -> Option<Result<T, Error>> {
        self.0.lock().take()
    }

    /// Wakes `waker` when the result is available: at once if it already is. Replaces a waker that was set before.
    ///
    /// The waker runs on the thread that delivers the result, so it must not block.
    pub fn set_waker(&self, waker: Waker) {
        let mut state = self.0.lock();
        match &mut *state {
            State::Waiting { waker: place, .. } => *place = Some(waker),
            State::Delivered(_) => {
                // Unlocked first, because the waker may call this `Pending`.
                drop(state);
                wake(&waker);
            }
            State::Taken => {}
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, Error>> {
        let mut state = self.0.lock();
        match &mut *state {
            State::Waiting { waker, .. } => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            State::Delivered(_) | State::Taken => Poll::Ready(state.take().unwrap_or_else(|| Err(taken()))),
        }
    }
}

fn taken() -> Error {
    Error::internal("the result was already taken")
}

/// Wakes a waker that a user of the library has set. The waker runs code of the user on this thread: a panic of that
/// code is logged and does not end the thread. The caller must not hold a lock, because that code may call the library.
pub(crate) fn wake(waker: &Waker) {
    // The waker has no access to state of the library, so a panic leaves no update half done.
    if catch_unwind(AssertUnwindSafe(|| waker.wake_by_ref())).is_err() {
        log::error!("a waker has panicked");
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for ReplySender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplySender").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_result_is_taken_once_and_wakes_wakers_set_before_and_after_delivery() {
        let wakes = Arc::new(Count::default());
        let (sender, pending) = pending();
        pending.set_waker(Arc::clone(&wakes).into());
        assert!(pending.try_take().is_none() && pending.wait_until(Instant::now()).is_none());
        sender.send(Ok(7));
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        pending.set_waker(Arc::clone(&wakes).into());
        assert_eq!(wakes.0.load(Ordering::SeqCst), 2);
        assert_eq!(pending.try_take(), Some(Ok(7)));
        assert_eq!(pending.try_take(), None);
        assert!(matches!(pending.wait(), Err(Error::Internal(_))));
    }

    #[test]
    fn a_sender_that_is_dropped_delivers_an_error() {
        let (sender, lost) = pending::<()>();
        let waiting = thread::spawn(move || lost.wait());
        thread::sleep(Duration::from_millis(10));
        drop(sender);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Internal(_))));
    }

    #[test]
    fn a_future_is_ready_when_the_result_is_delivered() {
        let wakes = Arc::new(Count::default());
        let waker = Arc::clone(&wakes).into();
        let mut context = Context::from_waker(&waker);
        let (sender, mut pending) = pending();
        assert_eq!(Pin::new(&mut pending).poll(&mut context), Poll::Pending);
        sender.send(Ok("done"));
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        assert_eq!(Pin::new(&mut pending).poll(&mut context), Poll::Ready(Ok("done")));
        assert!(
            matches!(Pin::new(&mut pending).poll(&mut context), Poll::Ready(Err(Error::Internal(_)))),
            "the result was already taken"
        );
    }

    #[test]
    fn every_thread_that_waits_is_woken() {
        let (sender, pending) = pending();
        let pending = Arc::new(pending);
        let far = Instant::now() + Duration::from_secs(600);
        let wait = || {
            let pending = Arc::clone(&pending);
            thread::spawn(move || pending.wait_until(far))
        };
        let waiting = [wait(), wait(), wait()];
        thread::sleep(Duration::from_millis(10));
        sender.send(Ok(()));
        let results = waiting.map(|thread| thread.join().unwrap());
        assert_eq!(results.iter().filter(|result| result.is_some()).count(), 1, "one takes the result, all return");
    }

    #[test]
    fn a_waker_that_panics_does_not_end_the_delivering_thread() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("on purpose");
            }
        }
        let (sender, pending) = pending();
        pending.set_waker(Arc::new(Panics).into());
        sender.send(Ok(1));
        assert_eq!(pending.try_take(), Some(Ok(1)));
    }

    #[test]
    fn a_deadline_that_is_far_away_does_not_panic() {
        let (sender, pending) = pending();
        let far = Instant::now() + Duration::from_secs(1 << 40);
        let waiting = thread::spawn(move || pending.wait_until(far));
        sender.send(Ok(()));
        assert_eq!(waiting.join().unwrap(), Some(Ok(())));
    }
}
