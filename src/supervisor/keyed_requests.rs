//! The units that were started by requests with an idempotency key, and the clients that follow the runs among them.
//!
//! Pure. There is at most one key for each unit, and it is forgotten with the unit. A client is identified by the unit id
//! that its request has reserved: that of the run, if the request has started it, otherwise one that no unit has.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::model::{RequestKey, UnitId};
use crate::shrink::shrink_map;

/// The index of requests with a key.
#[derive(Debug)]
pub(super) struct KeyedRequests {
    /// Time for which a run without clients is kept running.
    grace: Duration,
    by_key: HashMap<Arc<str>, (Arc<RequestKey>, UnitId)>,
    /// The runs that have clients or a deadline.
    runs: HashMap<UnitId, Followed>,
    /// The clients of runs, each with the run that it follows.
    clients: HashMap<UnitId, UnitId>,
    /// The deadlines of `runs`.
    due: BTreeSet<(Duration, UnitId)>,
}

/// A run and its clients.
#[derive(Debug, Default)]
struct Followed {
    clients: Vec<UnitId>,
    /// When the run is to be killed, unless a client comes back by then.
    kill_at: Option<Duration>,
}

impl KeyedRequests {
    /// An empty index. A run that has lost its last client is due after `grace`.
    pub(super) fn new(grace: Duration) -> KeyedRequests {
        KeyedRequests {
            grace,
            by_key: HashMap::new(),
            runs: HashMap::new(),
            clients: HashMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// The unit that an earlier request with this key has started. None if no unit of the key is remembered.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`] if that request was a different one.
    pub(super) fn find(&self, request: &RequestKey) -> Result<Option<UnitId>, Error> {
        match self.by_key.get(&request.key) {
            None => Ok(None),
            Some((first, unit)) if **first == *request => Ok(Some(*unit)),
            Some(_) => Err(Error::IdempotencyKeyReused(request.key.to_string())),
        }
    }

    /// Records the unit that a request has started.
    pub(super) fn insert(&mut self, request: &Arc<RequestKey>, unit: UnitId) {
        self.by_key.insert(Arc::clone(&request.key), (Arc::clone(request), unit));
    }

    /// Forgets a unit, with its clients.
    pub(super) fn forget(&mut self, request: &RequestKey, unit: UnitId) {
        if self.by_key.get(&request.key).is_some_and(|(_, holder)| *holder == unit) {
            self.by_key.remove(&request.key);
            shrink_map(&mut self.by_key);
        }
        if let Some(run) = self.runs.remove(&unit) {
            for client in &run.clients {
                self.clients.remove(client);
            }
            if let Some(at) = run.kill_at {
                self.due.remove(&(at, unit));
            }
            self.shrink();
        }
    }

    /// Records that a client follows a run.
    pub(super) fn attach(&mut self, run: UnitId, client: UnitId) {
        let followed = self.runs.entry(run).or_default();
        followed.clients.push(client);
        if let Some(at) = followed.kill_at.take() {
            self.due.remove(&(at, run));
        }
        self.clients.insert(client, run);
    }

    /// Records that a client has gone. Returns its run if that was the last client.
    pub(super) fn detach(&mut self, client: UnitId) -> Option<UnitId> {
        let run = self.clients.remove(&client)?;
        let followed = self.runs.get_mut(&run)?;
        followed.clients.retain(|other| *other != client);
        let was_last = followed.clients.is_empty();
        if was_last {
            self.runs.remove(&run);
        }
        self.shrink();
        was_last.then_some(run)
    }

    /// Records that a run has lost its last client and has not ended.
    pub(super) fn await_client(&mut self, run: UnitId, now: Duration) {
        // A grace beyond the range of the clock means no deadline.
        let Some(at) = now.checked_add(self.grace) else { return };
        self.runs.insert(run, Followed { clients: Vec::new(), kill_at: Some(at) });
        self.due.insert((at, run));
    }

    /// When [`KeyedRequests::take_due`] returns a run, if no client comes back by then.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A run to which no client has come back in time. It is returned once.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<UnitId> {
        let (at, run) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, run));
        self.runs.remove(&run);
        self.shrink();
        Some(run)
    }

    fn shrink(&mut self) {
        shrink_map(&mut self.runs);
        shrink_map(&mut self.clients);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Operation;

    const GRACE: Duration = Duration::from_secs(10);

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn request(key: &str, operation: Operation, body: u8) -> Arc<RequestKey> {
        Arc::new(RequestKey { key: key.into(), operation, body: [body; 20] })
    }

    fn is_empty(index: &KeyedRequests) -> bool {
        index.by_key.is_empty() && index.runs.is_empty() && index.clients.is_empty() && index.due.is_empty()
    }

    #[test]
    fn a_key_belongs_to_one_operation_and_one_body_until_its_unit_is_forgotten() {
        let mut index = KeyedRequests::new(GRACE);
        let first = request("k", Operation::Start, 1);
        assert_eq!(index.find(&first), Ok(None));
        index.insert(&first, UnitId(1));
        assert_eq!(index.find(&request("k", Operation::Start, 1)), Ok(Some(UnitId(1))));
        for other in
            [request("k", Operation::Start, 2), request("k", Operation::Run, 1), request("k", Operation::OpenPty, 1)]
        {
            assert_eq!(index.find(&other), Err(Error::IdempotencyKeyReused("k".to_owned())), "{other:?}");
        }
        assert_eq!(index.find(&request("K", Operation::Start, 1)), Ok(None), "another key");
        index.forget(&first, UnitId(2));
        assert_eq!(index.find(&first), Ok(Some(UnitId(1))), "the key of another unit is kept");
        index.forget(&first, UnitId(1));
        assert_eq!(index.find(&first), Ok(None));
        assert!(is_empty(&index));
    }

    #[test]
    fn a_run_is_due_once_after_the_grace_without_clients() {
        let mut index = KeyedRequests::new(GRACE);
        let (run, [a, b, c]) = (UnitId(1), [UnitId(1), UnitId(2), UnitId(3)]);
        index.insert(&request("k", Operation::Run, 1), run);
        index.attach(run, a);
        index.attach(run, b);
        assert_eq!((index.detach(a), index.deadline()), (None, None), "one client is left");
        assert_eq!(index.detach(a), None, "a client goes once");
        assert_eq!(index.detach(b), Some(run));
        index.await_client(run, at(100));
        assert_eq!((index.deadline(), index.take_due(at(109))), (Some(at(110)), None));
        index.attach(run, c);
        assert_eq!((index.deadline(), index.take_due(at(999))), (None, None), "a client is back");
        assert_eq!(index.detach(c), Some(run));
        index.await_client(run, at(200));
        assert_eq!((index.take_due(at(210)), index.take_due(at(210))), (Some(run), None));
        assert_eq!(index.deadline(), None);
        index.forget(&request("k", Operation::Run, 1), run);
        assert!(is_empty(&index));
    }

    #[test]
    fn a_forgotten_run_leaves_nothing() {
        let mut index = KeyedRequests::new(GRACE);
        let keys: Vec<_> = (0..3).map(|n| request(&n.to_string(), Operation::Run, 1)).collect();
        for (n, key) in (0..).zip(&keys) {
            index.insert(key, UnitId(n));
            index.attach(UnitId(n), UnitId(n + 10));
        }
        assert_eq!(index.detach(UnitId(11)), Some(UnitId(1)));
        index.await_client(UnitId(1), at(5));
        for (n, key) in (0..).zip(&keys) {
            index.forget(key, UnitId(n));
        }
        assert!(is_empty(&index));
        assert_eq!(index.detach(UnitId(10)), None, "its client is not known any more");
    }

    #[test]
    fn a_grace_beyond_the_clock_is_no_deadline() {
        let mut index = KeyedRequests::new(Duration::MAX);
        index.await_client(UnitId(1), at(1));
        assert!(is_empty(&index));
    }
}
