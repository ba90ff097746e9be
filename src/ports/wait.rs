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
        Wait { want, token, probe: None, probe_time: FIRST_PROBE, has_answered, again: Some(now) }
    }

    /// Its port has changed: look at it at once.
    pub fn port_has_changed(&mut self, now: Instant) {
        self.again = Some(now);
    }

    /// What it needs at `now`, if its port `is_open`. It gets that at once, or is told with [`Wait::retry`] to wait.
    pub fn need(&mut self, is_open: bool, now: Instant) -> Need {
        if self.probe.is_some() || self.again.is_none_or(|at| at > now) {
            return Need::Nothing;
        }
        self.again = None;
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

    /// When to look at it again, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.probe.as_ref().map(|(_, expires)| *expires).into_iter().chain(self.again).min()
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
