//! [`Wait`]: how far one wait for a port has got, with its probe.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Registry, Token};

use super::owners::Place;
use super::shared::Want;
use crate::probe::{Outcome, Probe};

/// Time from a probe that has failed, or from a look that has found another owner, to the next one.
pub const RETRY: Duration = Duration::from_millis(250);

/// How long the first probe may take. A server may compile what it serves at the first request, and another may have
/// lost that request: so each probe may take twice as long as the one before, up to [`LONGEST_PROBE`].
const FIRST_PROBE: Duration = Duration::from_secs(5);

/// The longest time that a probe may take.
const LONGEST_PROBE: Duration = Duration::from_secs(300);

/// A wait that the thread has taken over.
#[derive(Debug)]
pub struct Wait {
    pub want: Arc<Want>,
    /// Identifies its probe in the events of the poll.
    pub token: Token,
    /// The probe in progress, and when it counts as failed.
    probe: Option<(Probe, Instant)>,
    probe_time: Duration,
    /// The service has answered a probe, or need not do.
    has_answered: bool,
    /// When to go on although no change was seen. None: when its port changes.
    again: Option<Instant>,
    /// It needs a probe, and gets one as soon as fewer waits have one than may.
    is_queued: bool,
    /// When its last probe ended; before that, when the thread has taken it over.
    idle_since: Instant,
}

/// What a wait needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Its probe, its time or a change of its port.
    Nothing,
    /// A probe.
    Probe,
    /// To know who listens on its port.
    Owner,
}

impl Wait {
    pub fn new(want: Arc<Want>, token: Token, now: Instant) -> Wait {
        let has_answered = want.query.http_path().is_none();
        let (probe, again) = (None, Some(now));
        Wait { want, token, probe, probe_time: FIRST_PROBE, has_answered, again, is_queued: false, idle_since: now }
    }

    /// Its port has changed: look at it at once.
    pub fn port_has_changed(&mut self, now: Instant) {
        self.again = Some(now);
    }

    /// What it needs at `now`, if its port `is_open`. It gets that at once, or is told with [`Wait::retry`] or
    /// [`Wait::queue`] to wait.
    pub fn need(&mut self, is_open: bool, now: Instant) -> Need {
        let is_due = self.is_queued || self.again.is_some_and(|at| at <= now);
        if self.probe.is_some() || !is_due {
            return Need::Nothing;
        }
        (self.again, self.is_queued) = (None, false);
        match (is_open, self.has_answered) {
            (false, _) => Need::Nothing,
            (true, false) => Need::Probe,
            (true, true) => Need::Owner,
        }
    }

    pub fn has_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// Goes on at this time, with a probe if it needs one.
    pub fn retry(&mut self, at: Instant) {
        self.has_answered = self.want.query.http_path().is_none();
        self.again = Some(at);
    }

    /// Goes on when the probe of another wait has ended.
    pub fn queue(&mut self) {
        self.is_queued = true;
    }

    /// The one with the smallest value is the next to get a probe: so each wait gets its turn, also while many services
    /// leave their probes without an answer.
    pub fn turn(&self) -> Instant {
        self.idle_since
    }

    /// When to look at it again, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        // While a probe is in progress, it does not go on for any other reason.
        self.probe.as_ref().map_or(self.again, |(_, expires)| Some(*expires))
    }

    /// Begins a probe of the service at this place.
    pub fn begin_probe(&mut self, place: &Place, registry: &Registry, now: Instant) {
        let path = self.want.query.http_path().unwrap_or("/");
        match Probe::of_any_status(place.1, place.0, path) {
            Ok(probe) => {
                self.probe = Some((probe, now + self.probe_time));
                self.advance_probe(registry, now);
            }
            Err(_) => self.retry(now + RETRY),
        }
    }

    /// Continues the probe as far as possible.
    pub fn advance_probe(&mut self, registry: &Registry, now: Instant) {
        let Some((probe, expires)) = &mut self.probe else { return };
        let mut outcome = probe.advance(registry);
        if outcome.is_none() && !probe.is_registered() {
            outcome = probe.register(registry, self.token).err().map(Outcome::Void);
        }
        let expired = outcome.is_none() && *expires <= now;
        if outcome.is_none() && !expired {
            return;
        }
        let is_answered = matches!(outcome, Some(Outcome::Healthy));
        self.drop_probe(registry, is_answered);
        self.idle_since = now;
        if expired {
            self.probe_time = (self.probe_time * 2).min(LONGEST_PROBE);
        }
        if is_answered {
            (self.has_answered, self.again) = (true, Some(now));
        } else {
            self.again = Some(if expired { now } else { now + RETRY });
        }
    }

    /// Ends the probe, if there is one.
    pub fn drop_probe(&mut self, registry: &Registry, with_fin: bool) {
        if let Some((probe, _)) = self.probe.take() {
            probe.close(registry, with_fin);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};
    use std::task::Waker;

    use mio::Poll;

    use super::*;
    use crate::model::PortQuery;

    /// A service that accepts connections and does not answer, and a wait for its answer, which has a probe since `now`.
    fn probing(poll: &Poll, now: Instant) -> (TcpListener, Wait) {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let place = (silent.local_addr().unwrap().port(), IpAddr::from(Ipv4Addr::LOCALHOST));
        let query = PortQuery::new(place.0).unwrap().answering_http("/").unwrap();
        let mut wait = Wait::new(Arc::new(Want::new(query, Waker::noop().clone())), Token(1), now);
        assert_eq!(wait.need(true, now), Need::Probe);
        wait.begin_probe(&place, poll.registry(), now);
        assert!(wait.has_probe());
        (silent, wait)
    }

    #[test]
    fn a_change_of_the_port_during_a_probe_does_not_wake_the_thread_until_the_probe_ends() {
        let (poll, now) = (Poll::new().unwrap(), Instant::now());
        let (_silent, mut wait) = probing(&poll, now);
        wait.port_has_changed(now);
        assert_eq!(wait.need(true, now), Need::Nothing);
        assert_eq!(wait.deadline(), Some(now + FIRST_PROBE));
    }

    #[test]
    fn each_probe_without_an_answer_takes_twice_as_long_and_the_next_one_follows_at_once() {
        let (poll, mut now) = (Poll::new().unwrap(), Instant::now());
        let (silent, mut wait) = probing(&poll, now);
        let place = (silent.local_addr().unwrap().port(), IpAddr::from(Ipv4Addr::LOCALHOST));
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            wait.advance_probe(poll.registry(), now + Duration::from_secs(seconds) - Duration::from_millis(1));
            assert!(wait.has_probe(), "{seconds} s");
            now += Duration::from_secs(seconds);
            wait.advance_probe(poll.registry(), now);
            assert!(!wait.has_probe(), "{seconds} s");
            assert_eq!(wait.need(true, now), Need::Probe);
            wait.begin_probe(&place, poll.registry(), now);
        }
    }

    #[test]
    fn a_queued_wait_is_due_without_a_time_and_its_turn_comes_before_that_of_one_that_had_a_probe() {
        let (poll, now) = (Poll::new().unwrap(), Instant::now());
        let query = PortQuery::new(1).unwrap().answering_http("/").unwrap();
        let mut queued = Wait::new(Arc::new(Want::new(query, Waker::noop().clone())), Token(2), now);
        assert_eq!(queued.need(true, now), Need::Probe);
        queued.queue();
        assert_eq!(queued.deadline(), None);
        let (_silent, mut probed) = probing(&poll, now - Duration::from_millis(1));
        probed.advance_probe(poll.registry(), now + FIRST_PROBE);
        assert!(queued.turn() < probed.turn());
        assert_eq!(queued.need(true, now), Need::Probe);
        queued.queue();
        assert_eq!(queued.need(false, now), Need::Nothing, "the port was closed");
        assert_eq!(queued.need(true, now), Need::Nothing, "it goes on when the port changes");
    }
}
