//! Which run a process was started in, by the `INVOCATION_ID` in its environment.
//!
//! The environment is memory of the process, and the kernel fetches it from wherever that memory is: from a file system
//! that never answers, if the process has put it there. So a thread of its own reads it, nobody waits long for that,
//! and one that does not come back is left behind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::model::INVOCATION_ID;
use tl_os::procfs::{Identity, Process, is_still_there, variable};
use tl_os::thread;

/// How long one environment may take. What comes later is known at the next look.
const PATIENCE: Duration = Duration::from_millis(500);

/// Threads that may wait for an environment for ever. With more of them nothing new is read.
const MOST_STUCK: usize = 8;

/// What has been found out so far.
#[derive(Debug, Default)]
pub(super) struct Environ {
    /// An environment of a process that names a run stays true, whatever it executes later.
    found: Arc<Mutex<HashMap<Identity, String>>>,
    /// Those that a thread has been reading for too long.
    stuck: HashSet<Identity>,
    /// Those that have been found to name no run at this look. They may execute what names one before the next.
    none: HashSet<Identity>,
    reader: Option<Reader>,
    /// Held by each thread while it lives.
    threads: Arc<()>,
}

/// A thread that reads, one at a time.
#[derive(Debug)]
struct Reader {
    ask: Sender<Process>,
    done: Receiver<()>,
}

impl Environ {
    /// The run that this process names, where that can be found out.
    pub(super) fn invocation_of(&mut self, process: &Process) -> Option<String> {
        let identity = process.identity();
        let known = self.found().get(&identity).cloned();
        if known.is_some() || process.dead || self.stuck.contains(&identity) || self.none.contains(&identity) {
            return known;
        }
        let reader = self.reader()?;
        let _ = reader.ask.send(*process);
        if reader.done.recv_timeout(PATIENCE).is_err() {
            log::debug!("the environment of process {} cannot be read in time", process.pid);
            self.stuck.insert(identity);
            self.reader = None;
        }
        let found = self.found().get(&identity).cloned();
        if found.is_none() {
            self.none.insert(identity);
        }
        found
    }

    /// A new look: forgets the processes that are gone.
    pub(super) fn forget_all_but(&mut self, lives: impl Fn(&Identity) -> bool) {
        self.none.clear();
        self.found().retain(|identity, _| lives(identity));
        self.stuck.retain(lives);
    }

    fn found(&self) -> MutexGuard<'_, HashMap<Identity, String>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&mut self) -> Option<&Reader> {
        if self.reader.is_none() && Arc::strong_count(&self.threads) <= MOST_STUCK {
            let (ask, asked) = unbounded();
            let (tell, done) = unbounded();
            let (found, alive) = (Arc::clone(&self.found), Arc::clone(&self.threads));
            let body = move || {
                for process in asked {
                    read(&process, &found);
                    let _ = tell.send(());
                }
                drop(alive);
                Ok(())
            };
            match thread::spawn("environ", body, || {}) {
                Ok(_) => self.reader = Some(Reader { ask, done }),
                Err(error) => log::warn!("no thread to read environments: {error}"),
            }
        }
        self.reader.as_ref()
    }
}

fn read(process: &Process, found: &Mutex<HashMap<Identity, String>>) {
    let value = variable(process, INVOCATION_ID);
    // Another process can have got the PID meanwhile.
    if let Ok(Some(value)) = value
        && is_still_there(process.identity())
    {
        found.lock().unwrap_or_else(PoisonError::into_inner).insert(process.identity(), value);
    }
}
