//! A terminal session as clients see it, and how long it lives without clients.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::model::{Millis, Pid};

/// Time for which an ended session can be looked up.
pub const KEPT: Duration = Duration::from_secs(60);

/// A session as the API shows it (docs/api.md, Terminal sessions). Its token is shown only when it is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The id, 32 random hexadecimal digits.
    pub session_id: String,
    /// The PID of the leader.
    pub pid: Pid,
    /// The command, as it was given.
    pub command: Arc<str>,
    /// The arguments, as they were given.
    pub args: Arc<[String]>,
    /// Rows of the terminal now.
    pub rows: u16,
    /// Columns of the terminal now.
    pub cols: u16,
    /// When the leader was forked.
    pub created_at: Millis,
    /// When the session ended; none while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// The exit code; none while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the session runs.
    pub is_alive: bool,
    /// Clients that are attached now.
    pub client_count: usize,
}

/// What is due for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It has been without clients for too long: hang up its terminal.
    HangUp,
    /// It ended [`KEPT`] ago: remove it.
    Forget,
}

/// The clients of a session, and since when it has none. Times are monotonic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    patience: Duration,
    clients: usize,
    idle_since: Duration,
    hung_up: bool,
    ended: Option<Duration>,
}

impl Life {
    /// A session that begins now, without clients, and may be without them for `patience`.
    pub fn new(now: Duration, patience: Duration) -> Life {
        Life { patience, clients: 0, idle_since: now, hung_up: false, ended: None }
    }

    /// A client attaches.
    pub fn attach(&mut self) {
        self.clients += 1;
    }

    /// A client has detached.
    pub fn detach(&mut self, now: Duration) {
        self.clients = self.clients.saturating_sub(1);
        self.idle_since = now;
    }

    /// The session has ended.
    pub fn end(&mut self, now: Duration) {
        self.ended.get_or_insert(now);
    }

    /// The number of clients that are attached.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// When [`Life::due`] has something to give, if nothing happens until then.
    pub fn deadline(&self) -> Option<Duration> {
        match self.ended {
            Some(at) => at.checked_add(KEPT),
            None if self.clients == 0 && !self.hung_up => self.idle_since.checked_add(self.patience),
            None => None,
        }
    }

    /// What is due; [`Due::HangUp`] is given once.
    pub fn due(&mut self, now: Duration) -> Option<Due> {
        if self.deadline()? > now {
            return None;
        }
        if self.ended.is_some() {
            return Some(Due::Forget);
        }
        self.hung_up = true;
        Some(Due::HangUp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_session_without_clients_is_hung_up_after_its_patience() {
        let mut life = Life::new(at(100), at(300));
        assert_eq!(life.deadline(), Some(at(400)), "from the beginning on");
        life.attach();
        life.attach();
        life.detach(at(150));
        assert_eq!((life.deadline(), life.clients()), (None, 1));
        assert_eq!(life.due(at(9_999)), None);
        life.detach(at(200));
        assert_eq!(life.due(at(499)), None);
        assert_eq!(life.due(at(500)), Some(Due::HangUp));
        assert_eq!((life.due(at(501)), life.deadline()), (None, None), "once");
        life.end(at(503));
        assert_eq!(life.due(at(562)), None);
        assert_eq!(life.due(at(563)), Some(Due::Forget));
    }

    #[test]
    fn an_ended_session_is_kept_for_a_minute_with_or_without_clients() {
        let mut life = Life::new(at(0), at(1));
        life.attach();
        life.end(at(10));
        life.end(at(20));
        assert_eq!(life.deadline(), Some(at(70)));
        life.detach(at(30));
        assert_eq!(life.deadline(), Some(at(70)));
        life.detach(at(40));
        assert_eq!(life.clients(), 0, "never less than nobody");
    }

    #[test]
    fn the_status_of_a_killed_session_is_128_plus_the_signal() {
        use crate::model::Exit;
        assert_eq!([Exit::Code(3), Exit::Signal(1), Exit::OomKilled].map(Exit::shell_status), [3, 129, 137]);
    }
}
