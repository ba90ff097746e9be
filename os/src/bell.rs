//! Wakes one thread that sleeps until there is work, or until a descriptor that it watches can be read. Ringing costs a
//! system call only while that thread sleeps.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::poll::{Waker, timeout};

/// The token of the bell's own descriptor.
const OWN: u64 = u64::MAX;

/// Number of descriptors that one wait can report.
const MAX_READY: usize = 32;

/// Wakes the one thread that calls [`Bell::sleep_unless`].
#[derive(Debug)]
pub struct Bell {
    /// Whether the thread sleeps or is about to, and nobody has rung since.
    asleep: AtomicBool,
    waker: Waker,
    epoll: Epoll,
}

impl Bell {
    /// A bell that has not been rung.
    ///
    /// # Errors
    /// When the system or this process has no descriptor left.
    pub fn new() -> io::Result<Bell> {
        let (waker, epoll) = (Waker::new()?, Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        // Edge-triggered: each ring is reported once, without a read.
        epoll.add(&waker, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, OWN))?;
        Ok(Bell { asleep: AtomicBool::new(false), waker, epoll })
    }

    /// Watches a descriptor until it is closed: it is ready when it has something new to read, or is at its end. That is
    /// reported once: a copy of the descriptor, in a child that was just forked, can outlast it. `token` stands for it;
    /// `u64::MAX` is not allowed.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn watch(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token))?)
    }

    /// Wakes the thread if it sleeps. Call it after the work was made visible to the thread: if the thread does not
    /// sleep, it sees that work before it sleeps. Async-signal-safe.
    pub fn ring(&self) {
        // Pairs with the fence in `sleep_unless`: either this thread sees that the other one sleeps, or that one sees
        // the work.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    /// Sleeps until the bell is rung, a watched descriptor is ready, a signal handler has run in this thread, or
    /// `deadline`; not at all if there is work, which `has_work` says. Also returns early without a reason. Calls
    /// `ready` with the tokens of the descriptors that are ready.
    ///
    /// # Errors
    /// What `epoll_wait(2)` says.
    pub fn sleep_unless(
        &self,
        has_work: impl FnOnce() -> bool,
        deadline: Option<Instant>,
        ready: impl FnMut(u64),
    ) -> io::Result<()> {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let result = if has_work() {
            Ok(())
        } else {
            self.wait(timeout(deadline).try_into().unwrap_or(EpollTimeout::MAX), ready)
        };
        // A late ring makes the next sleep return early.
        self.asleep.store(false, Ordering::Relaxed);
        result
    }

    /// Calls `ready` with the tokens of the descriptors that are ready now.
    ///
    /// # Errors
    /// What `epoll_wait(2)` says.
    pub fn look(&self, ready: impl FnMut(u64)) -> io::Result<()> {
        self.wait(EpollTimeout::ZERO, ready)
    }

    fn wait(&self, timeout: EpollTimeout, ready: impl FnMut(u64)) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); MAX_READY];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        events.iter().take(count).map(EpollEvent::data).filter(|token| *token != OWN).for_each(ready);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use crate::testing::wait_until;

    #[test]
    fn a_thread_that_sleeps_misses_no_ring() {
        const COUNT: usize = 100_000;
        let (bell, work) = (Arc::new(Bell::new().unwrap()), Arc::new(AtomicUsize::new(0)));
        let sender = {
            let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
            thread::spawn(move || {
                for _ in 0..COUNT {
                    work.fetch_add(1, Ordering::Relaxed);
                    bell.ring();
                }
            })
        };
        let (mut done, deadline) = (0, Instant::now() + Duration::from_secs(60));
        while done < COUNT {
            assert!(Instant::now() < deadline, "{done} of {COUNT}: a ring was missed");
            done += work.swap(0, Ordering::Relaxed);
            if done < COUNT {
                bell.sleep_unless(|| work.load(Ordering::Relaxed) > 0, Some(deadline), |_| {}).unwrap();
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn a_sleep_ends_at_its_deadline() {
        // The handler of a signal of another test would end the sleep early.
        let _blocked = crate::sigmask::BlockedSignals::all().unwrap();
        let (bell, begun) = (Bell::new().unwrap(), Instant::now());
        bell.sleep_unless(|| false, Some(begun + Duration::from_millis(20)), |_| {}).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_descriptor_is_ready_when_it_has_bytes_or_is_at_its_end() {
        let bell = Bell::new().unwrap();
        // A child that another test has just forked has these open until it executes its program.
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let ((first, write_first), (second, write_second)) = (pipe(), pipe());
        bell.watch(&first, 1).unwrap();
        bell.watch(&second, 2).unwrap();
        let ready = || {
            let mut ready = Vec::new();
            bell.look(|token| ready.push(token)).unwrap();
            ready.sort_unstable();
            ready
        };
        assert_eq!(ready(), [0; 0]);
        nix::unistd::write(&write_first, b"x").unwrap();
        drop(write_second);
        let mut seen = Vec::new();
        wait_until("both are ready", || {
            seen.extend(ready());
            seen.contains(&1) && seen.contains(&2)
        });
        let _copy = first.try_clone().unwrap();
        drop((first, write_first));
        wait_until("the end is reported", || ready() == [1]);
        assert_eq!(ready(), [0; 0], "a copy of a descriptor that was closed");
    }
}
