//! Ports: the methods of [`Handle`], and the units to whose trees processes that listen belong.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::actor::Actor;
use super::announcements::subject;
use super::handle::Handle;
use super::mailbox::MessageSender;
use super::message::{Command, Message};
use crate::error::Error;
use crate::events::{EventLog, EventSubject};
use crate::model::{Port, PortQuery, RunKey, UnitId};
use crate::pending::parker::Parker;
use crate::pending::{ReplySender, pending};
use crate::ports::{Candidate, FindUnits, PortWatch, Ports};
use crate::trees::{Attribution, Job, Tracking};
use tl_os::cgroup::Leaf;
use tl_os::process_tree::Marks;

/// How long to wait until the units are found. Ports are then listed without them.
const FIND_TIMEOUT: Duration = Duration::from_secs(2);

impl Handle {
    /// The TCP sockets of the sandbox that listen, IPv4 and IPv6, by port, except those of this process. Blocks while it
    /// reads /proc, for some milliseconds for each 100 processes.
    ///
    /// # Errors
    /// [`Error::OutOfResources`]; [`Error::Internal`] if the kernel lists no sockets.
    ///
    /// ```
    /// # use tl_supervisor::{Supervisor, UserSpec};
    /// # let dir = tempfile::tempdir()?;
    /// # let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
    /// let own = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let port = own.local_addr()?.port();
    /// assert!(!supervisor.handle().ports()?.iter().any(|listed| listed.port == port));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ports(&self) -> Result<Vec<Port>, Error> {
        self.ports.list()
    }

    /// Begins to wait for a port: until `query` is met, for example until a process of a certain tree listens on it. It may
    /// be met already. `waker` is woken when [`PortWatch::try_take`] returns a result; it must not block.
    ///
    /// While waits exist, a thread lists the listening sockets at least every 250 ms.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`]; those of [`ports`](Handle::ports).
    pub fn watch_port(&self, query: PortQuery, waker: Waker) -> Result<PortWatch, Error> {
        self.ports.watch(query, waker)
    }

    /// Blocks until `query` is met, and returns the entry of the port then. Returns None after `timeout`; None waits for
    /// ever.
    ///
    /// # Errors
    /// Those of [`watch_port`](Handle::watch_port).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tl_supervisor::PortQuery;
    /// # use tl_supervisor::{Supervisor, UserSpec};
    /// # let dir = tempfile::tempdir()?;
    /// # let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
    ///
    /// let query = PortQuery::new(1)?.answering_http("/")?;
    /// assert_eq!(supervisor.handle().wait_port(query, Some(Duration::from_millis(10)))?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_port(&self, query: PortQuery, timeout: Option<Duration>) -> Result<Option<Port>, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let parker = Arc::new(Parker::default());
        let watch = self.watch_port(query, Waker::from(Arc::clone(&parker)))?;
        loop {
            if let Some(result) = watch.try_take() {
                return result.map(Some);
            }
            if !parker.park(deadline) {
                return Ok(None);
            }
        }
    }
}

/// The ports of a supervisor, which asks its thread for the units of processes.
pub(super) fn ports(messages: MessageSender, events: &Arc<EventLog>) -> Ports {
    let find = move |candidates: Vec<Candidate>| {
        let count = candidates.len();
        let (reply, result) = pending();
        messages.send(Message::Command(Command::UnitsOf(candidates, reply)));
        let found = result.wait_until(Instant::now() + FIND_TIMEOUT).and_then(Result::ok);
        found.unwrap_or_else(|| vec![None; count])
    };
    Ports::new(FindUnits(Box::new(find)), events)
}

impl Actor {
    /// Answers to whose trees these processes belong. If some are in no cgroup of a unit, and there are runs without one,
    /// the trees thread answers.
    pub(super) fn units_of(&self, candidates: Vec<Candidate>, reply: ReplySender<Vec<Option<EventSubject>>>) {
        let mut leaves: HashMap<&str, (UnitId, &Leaf)> = HashMap::new();
        let mut marked: Vec<_> = Vec::new();
        let current = self.parts.fleet.iter().filter_map(|(id, member)| {
            let tracking = member.context.tree.as_ref()?;
            Some(((id, member.unit.run_no()), tracking))
        });
        for (key, tracking) in current.chain(self.watches.retired.iter().map(|(key, tracking)| (*key, tracking))) {
            match tracking {
                Tracking::Leaf(leaf) => {
                    leaves.insert(leaf.name(), (key.0, leaf));
                }
                Tracking::Marks(marks) => marked.push((key, Marks::clone(marks))),
            }
        }
        let in_leaf = |cgroup: &str| {
            let mut names = cgroup.split('/');
            let (id, _) = names.find_map(|name| leaves.get(name).filter(|(_, leaf)| leaf.is_above(cgroup)))?;
            Some(subject(*id, self.parts.fleet.get(*id)?))
        };
        let found: Vec<_> = candidates.iter().map(|candidate| in_leaf(&candidate.cgroup)).collect();
        if marked.is_empty() || found.iter().all(Option::is_some) {
            return reply.send(Ok(found));
        }
        let run = |(key, marks): (RunKey, Marks)| Some((key, marks, subject(key.0, self.parts.fleet.get(key.0)?)));
        let runs = marked.into_iter().filter_map(run).collect();
        let open = candidates.into_iter().enumerate().filter(|(at, _)| found.get(*at).is_some_and(Option::is_none));
        let processes = open.map(|(at, candidate)| (at, candidate.ancestry)).collect();
        self.send_job(Job::Attribute(Box::new(Attribution { runs, processes, found, reply })));
    }
}
