//! [`mailbox`]: a queue between threads whose receiver sleeps at once when the queue is empty.
//!
//! The receiver of a crossbeam channel first calls `sched_yield(2)` several times. On few processors that takes time
//! from the thread that is to send.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tl_os::thread;

/// Capacity up to which an empty queue keeps its memory.
const KEPT: usize = 64;

/// Sends to a [`MailReceiver`].
#[derive(Debug)]
pub(crate) struct MailSender<T>(Arc<Shared<T>>);

/// Receives what its [`MailSender`] sends.
#[derive(Debug)]
pub(crate) struct MailReceiver<T>(Arc<Shared<T>>);

/// The result of a receive that has a deadline.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mail<T> {
    Received(T),
    /// The deadline has passed.
    Late,
    /// The sender was dropped, and everything that it had sent has been received.
    Closed,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    /// The receiver sleeps. Otherwise it need not be woken, which is a system call.
    sleeps: bool,
    /// Neither end was dropped.
    open: bool,
}

/// A queue without a bound of its own: its user says what limits it.
pub(crate) fn mailbox<T>() -> (MailSender<T>, MailReceiver<T>) {
    let state = Mutex::new(State { queue: VecDeque::new(), sleeps: false, open: true });
    let shared = Arc::new(Shared { state, changed: Condvar::new() });
    (MailSender(Arc::clone(&shared)), MailReceiver(shared))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> MailSender<T> {
    /// Sends `mail`, or drops it if the receiver was dropped. Never blocks.
    pub(crate) fn send(&self, mail: T) {
        let mut state = self.0.lock();
        if !state.open {
            // Dropped without the lock: it may send to this queue.
            drop(state);
            return;
        }
        state.queue.push_back(mail);
        let wakes = std::mem::take(&mut state.sleeps);
        drop(state);
        if wakes {
            self.0.changed.notify_one();
        }
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        self.0.lock().open = false;
        self.0.changed.notify_one();
    }
}

impl<T> MailReceiver<T> {
    /// Waits for the next mail. Returns None when the sender was dropped.
    pub(crate) fn recv(&self) -> Option<T> {
        match self.recv_until(None) {
            Mail::Received(mail) => Some(mail),
            Mail::Late | Mail::Closed => None,
        }
    }

    /// The next mail, if one is there.
    pub(crate) fn try_recv(&self) -> Option<T> {
        self.0.lock().pop()
    }

    /// Waits for the next mail, at most until `deadline`.
    pub(crate) fn recv_until(&self, deadline: Option<Instant>) -> Mail<T> {
        // The whole call is idle, so that a queue that is never empty is not taken for a hang.
        thread::idle(|| self.wait_until(deadline))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Mail<T> {
        let mut state = self.0.lock();
        loop {
            if let Some(mail) = state.pop() {
                return Mail::Received(mail);
            }
            if !state.open {
                return Mail::Closed;
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Mail::Late;
            }
            state.sleeps = true;
            state = match left {
                Some(left) => self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.sleeps = false;
        }
    }
}

impl<T> Drop for MailReceiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.open = false;
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        drop(queue);
    }
}

impl<T> State<T> {
    fn pop(&mut self) -> Option<T> {
        let mail = self.queue.pop_front();
        if mail.is_none() && self.queue.capacity() > KEPT {
            self.queue = VecDeque::new();
        }
        mail
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn mail_arrives_in_order_and_then_the_end() {
        let (sender, receiver) = mailbox();
        let sending = thread::spawn(move || (0..10_000).for_each(|n| sender.send(n)));
        let received: Vec<_> = std::iter::from_fn(|| receiver.recv()).collect();
        assert_eq!(received, (0..10_000).collect::<Vec<_>>());
        sending.join().unwrap();
        assert_eq!(receiver.try_recv(), None);
        assert_eq!(receiver.recv_until(None), Mail::Closed);
    }

    #[test]
    fn a_receiver_that_sleeps_is_woken_by_each_kind_of_event() {
        let (sender, receiver) = mailbox();
        let (replies, answers) = mailbox();
        let receiving = thread::spawn(move || {
            while let Some(n) = receiver.recv() {
                replies.send(n);
            }
        });
        for n in 0..1_000 {
            sender.send(n);
            assert_eq!(answers.recv(), Some(n));
        }
        drop(sender);
        receiving.join().unwrap();
        assert_eq!(answers.recv(), None);
    }

    #[test]
    fn a_receiver_that_always_has_mail_is_responsive() {
        let (sender, receiver) = mailbox();
        (0..100_000).for_each(|n| sender.send(n));
        let (tell, told) = crossbeam_channel::unbounded();
        let body = move || {
            while receiver.recv().is_some() && tell.send(()).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        let receiving = tl_os::thread::spawn("users", body, || {}).unwrap();
        told.recv().unwrap();
        let states = tl_os::thread::states(Duration::from_secs(2));
        let state = states.iter().find(|state| state.name == "users").unwrap();
        assert!(state.is_up && state.is_responsive, "{states:?}");
        drop(told);
        receiving.join().unwrap();
    }

    #[test]
    fn a_deadline_ends_a_wait() {
        let (sender, receiver) = mailbox();
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(receiver.recv_until(Some(soon)), Mail::Late);
        assert!(Instant::now() >= soon);
        sender.send(());
        assert_eq!(receiver.recv_until(Some(soon)), Mail::Received(()));
    }

    #[test]
    fn what_nobody_can_receive_is_dropped() {
        let (sender, receiver) = mailbox();
        let value = Arc::new(());
        sender.send(Arc::clone(&value));
        drop(receiver);
        sender.send(Arc::clone(&value));
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
