//! Determines which run a process belongs to, by the `INVOCATION_ID` in its environment.
//!
//! The environment is memory of the process, which a hostile process can place on a file system that never responds. So
//! a separate thread reads it. A thread that does not finish in time is abandoned, and another is started.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::INVOCATION_ID;
use crate::pending::mailbox::{Mail, MailReceiver, MailSender, mailbox};
use tl_os::procfs::{Identity, Process, is_alive, variable};
use tl_os::thread;

/// Longest wait for one environment. A result that comes later is used the next time.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Maximum number of threads that hang while reading an environment. At this number, no further environment is read.
const MAX_STUCK: usize = 8;

/// The run of each process, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Environ {
    /// The `INVOCATION_ID` of each process that was found to have one. It stays valid whatever the process executes
    /// later.
    found: Arc<Mutex<HashMap<Identity, String>>>,
    /// Processes with an environment that a thread hangs while reading.
    stuck: HashSet<Identity>,
    /// Processes that were found to have no `INVOCATION_ID` since they were last forgotten. They may get one
    /// by an exec.
    none: HashSet<Identity>,
    reader: Option<Reader>,
    /// Each thread holds a clone until it ends, so the reference count is the number of threads plus one.
    threads: Arc<()>,
}

/// A thread that reads environments, one at a time.
#[derive(Debug)]
struct Reader {
    requests: MailSender<Process>,
    done: MailReceiver<()>,
}

impl Environ {
    /// The `INVOCATION_ID` of a process, if it can be determined.
    pub(super) fn invocation_of(&mut self, process: &Process) -> Option<String> {
        let identity = process.identity();
        let known = self.found().get(&identity).cloned();
        if known.is_some() || process.dead || self.stuck.contains(&identity) || self.none.contains(&identity) {
            return known;
        }
        let reader = self.reader()?;
        reader.requests.send(*process);
        if reader.done.recv_until(Some(Instant::now() + TIMEOUT)) != Mail::Received(()) {
            log::debug!("reading the environment of process {} takes too long", process.pid);
            self.stuck.insert(identity);
            self.reader = None;
        }
        let found = self.found().get(&identity).cloned();
        if found.is_none() {
            self.none.insert(identity);
        }
        found
    }

    /// Forgets the processes that have ended, and those that had no `INVOCATION_ID`.
    pub(super) fn forget_all_but(&mut self, lives: impl Fn(&Identity) -> bool) {
        self.none.clear();
        self.found().retain(|identity, _| lives(identity));
        self.stuck.retain(lives);
    }

    /// Forgets the processes that had no `INVOCATION_ID`.
    pub(super) fn forget_those_without(&mut self) {
        self.none.clear();
    }

    /// Number of processes that are remembered.
    pub(super) fn len(&self) -> usize {
        self.found().len() + self.stuck.len()
    }

    fn found(&self) -> MutexGuard<'_, HashMap<Identity, String>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The idle reader, started if necessary; None if too many threads hang or no thread can be started.
    fn reader(&mut self) -> Option<&Reader> {
        if self.reader.is_none() && Arc::strong_count(&self.threads) <= MAX_STUCK {
            let (requests, inbox) = mailbox();
            let (finished, done) = mailbox();
            let (found, alive) = (Arc::clone(&self.found), Arc::clone(&self.threads));
            let body = move || {
                while let Some(process) = inbox.recv() {
                    read(&process, &found);
                    finished.send(());
                }
                drop(alive);
                Ok(())
            };
            match thread::spawn("environ", body, || {}) {
                Ok(_) => self.reader = Some(Reader { requests, done }),
                Err(error) => log::warn!("cannot start a thread to read environments: {error}"),
            }
        }
        self.reader.as_ref()
    }
}

/// Reads one environment, and adds its `INVOCATION_ID` to `found`.
fn read(process: &Process, found: &Mutex<HashMap<Identity, String>>) {
    let value = variable(process, INVOCATION_ID);
    // If another process has got the PID meanwhile, the value belongs to that process.
    if let Ok(Some(value)) = value
        && is_alive(process.identity())
    {
        found.lock().unwrap_or_else(PoisonError::into_inner).insert(process.identity(), value);
    }
}
