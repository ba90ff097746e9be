//! The thread `ports`: looks at the listening sockets again and again, for as long as anyone wants to know.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::owners::{Holder, Lister, Place, entry, find_holders};
use super::schedule::Schedule;
use super::shared::Shared;
use super::table::{Changes, Table};
use super::wait::{Need, RETRY, Wait};
use crate::error::Error;
use crate::events::{EventKind, EventSubject};
use crate::model::Port;
use tl_os::thread;

/// The token of the waker. Those of waits begin at 0.
pub const WAKE: Token = Token(usize::MAX);

/// Most probes at the same time. The descriptors that the daemon reserves for itself suffice for them.
const MAX_PROBES: usize = 16;

/// A look for owners is repeated after this many times as long as it took.
const OWNER_REST: u32 = 10;

/// The entries of places, each with the unit that it is about.
type Entries = BTreeMap<Place, (Arc<Port>, Option<EventSubject>)>;

/// The state of the thread.
pub struct Actor {
    shared: Arc<Shared>,
    poll: Poll,
    epoch: Instant,
    schedule: Schedule,
    lister: Lister,
    /// What listened at the last look.
    table: Table<Place>,
    waits: Vec<Wait>,
    last_token: usize,
    /// The ports that subscriptions know to be open. None while there are no subscriptions.
    told: Option<Entries>,
    /// The last look has failed. That is logged once, not for every look.
    is_blind: bool,
}

impl Actor {
    pub fn new(shared: Arc<Shared>, poll: Poll) -> Actor {
        Actor {
            shared,
            poll,
            epoch: Instant::now(),
            schedule: Schedule::default(),
            lister: Lister::default(),
            table: Table::default(),
            waits: Vec::new(),
            last_token: 0,
            told: None,
            is_blind: false,
        }
    }

    /// Runs until nobody waits and nobody subscribes. After a panic, it can be called again.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        while self.take_orders() {
            thread::fault_point();
            let now = Instant::now();
            if self.schedule.next() <= now.duration_since(self.epoch) {
                self.look();
            }
            self.advance_waits();
            match self.poll.poll(&mut events, Some(self.sleep())) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    self.end_waits(&Error::from_io("watching ports", &error));
                    self.shared.lock().thread = None;
                    return Err(error);
                }
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                if let Some(wait) = self.waits.iter_mut().find(|wait| wait.token == event.token()) {
                    wait.advance_probe(self.poll.registry(), now);
                }
            }
        }
        Ok(())
    }

    /// Takes over what has been asked for. Returns false if the thread must end.
    fn take_orders(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let now = Instant::now();
        let mut state = shared.lock();
        let baseline = state.baseline.take();
        let hurry = std::mem::take(&mut state.hurry) || !state.new.is_empty() || baseline.is_some();
        for want in state.new.drain(..) {
            self.last_token = self.last_token.wrapping_add(1) % WAKE.0;
            self.waits.push(Wait::new(want, Token(self.last_token), now));
        }
        self.drop_cancelled();
        let is_telling = state.readers > 0;
        let refuses = state.refuses || state.closed;
        let ends = state.closed || !is_telling && (refuses || self.waits.is_empty());
        if ends {
            state.thread = None;
        }
        drop(state);
        if refuses {
            self.end_waits(&Error::ShuttingDown);
        }
        if ends {
            return false;
        }
        if hurry {
            self.schedule.hurry(now.duration_since(self.epoch));
        }
        let is_first = baseline.is_some();
        if let Some(baseline) = baseline {
            self.table = baseline;
        }
        if !is_telling {
            self.told = None;
        } else if is_first || self.told.is_none() {
            // Also after a panic.
            self.told = Some(self.describe(self.table.iter().map(|(place, _)| place)));
        }
        true
    }

    fn drop_cancelled(&mut self) {
        let registry = self.poll.registry();
        self.waits.retain_mut(|wait| {
            let is_cancelled = wait.want.is_cancelled();
            if is_cancelled {
                wait.drop_probe(registry, false);
            }
            !is_cancelled
        });
    }

    fn end_waits(&mut self, error: &Error) {
        for mut wait in self.waits.drain(..) {
            wait.drop_probe(self.poll.registry(), false);
            wait.want.end(Err(error.clone()));
        }
    }

    /// Looks at the listening sockets, and tells subscriptions what has changed.
    fn look(&mut self) {
        let began = Instant::now();
        match self.lister.list() {
            Ok(table) => {
                self.is_blind = false;
                let changes = self.table.changes(&table);
                let is_changed = table != self.table;
                let before = std::mem::replace(&mut self.table, table);
                if is_changed {
                    self.note_changes(&before, began);
                    self.tell(changes);
                }
            }
            Err(error) if !self.is_blind => {
                log::warn!("listening sockets cannot be listed: {error}");
                self.is_blind = true;
            }
            Err(_) => {}
        }
        let now = Instant::now();
        self.schedule.looked(now.duration_since(self.epoch), now.duration_since(began));
    }

    /// Has the waits go on whose ports have changed.
    fn note_changes(&mut self, before: &Table<Place>, now: Instant) {
        for wait in &mut self.waits {
            let port = wait.want.query.port();
            let of_port = |table: &Table<Place>| -> Vec<_> {
                let places = table.iter().filter(|(place, _)| place.0 == port);
                places.map(|(place, sockets)| (*place, sockets.clone())).collect()
            };
            if of_port(before) != of_port(&self.table) {
                wait.port_has_changed(now);
            }
        }
    }

    fn tell(&mut self, changes: Changes<Place>) {
        let Some(mut told) = self.told.take() else { return };
        for place in &changes.closed {
            if let Some((port, unit)) = told.remove(place) {
                self.shared.events.push(unit, EventKind::PortClosed(port));
            }
        }
        for (place, (port, unit)) in self.describe(&changes.opened) {
            self.shared.events.push(unit.clone(), EventKind::PortOpened(Arc::clone(&port)));
            told.insert(place, (port, unit));
        }
        self.told = Some(told);
    }

    fn describe<'p>(&self, places: impl IntoIterator<Item = &'p Place>) -> Entries {
        let places = places.into_iter().filter_map(|place| Some((place, self.table.get(place)?)));
        let holders = find_holders(&self.shared.find, places);
        let entry = |(place, holders): (Place, Vec<Holder>)| {
            let (port, unit) = entry(&place, &holders, None);
            (place, (Arc::new(port), unit))
        };
        holders.into_iter().map(entry).collect()
    }

    /// Goes on with all waits as far as possible.
    fn advance_waits(&mut self) {
        let (now, registry) = (Instant::now(), self.poll.registry());
        // A probe whose time is over has failed.
        self.waits.iter_mut().for_each(|wait| wait.advance_probe(registry, now));
        let mut probes = self.waits.iter().filter(|wait| wait.has_probe()).count();
        self.waits.sort_by_key(Wait::turn);
        let mut need_owner = Vec::new();
        for (at, wait) in self.waits.iter_mut().enumerate() {
            let port = wait.want.query.port();
            let mut places = self.table.iter().map(|(place, _)| place).filter(|place| place.0 == port);
            let first = places.next();
            let mut need = wait.need(first.is_some(), now);
            if let (Need::Probe, Some(first)) = (need, first) {
                // Loopback reaches a socket that listens on all addresses, or on that one.
                let is_usual = |place: &&Place| place.1.is_unspecified() || place.1.is_loopback();
                let place = Some(first).filter(is_usual).or_else(|| places.find(is_usual)).unwrap_or(first);
                if probes >= MAX_PROBES {
                    wait.queue();
                    continue;
                }
                wait.begin_probe(place, registry, now);
                probes += usize::from(wait.has_probe());
                need = wait.need(true, now);
            }
            if need == Need::Owner {
                need_owner.push(at);
            }
        }
        if !need_owner.is_empty() {
            self.find_owners(&need_owner);
        }
    }

    /// Ends the waits at these indices, unless another process listens than the one that they want.
    fn find_owners(&mut self, waits: &[usize]) {
        let began = Instant::now();
        let ports: Vec<u16> =
            waits.iter().filter_map(|at| self.waits.get(*at)).map(|wait| wait.want.query.port()).collect();
        let places = self.table.iter().filter(|(place, _)| ports.contains(&place.0));
        let holders = find_holders(&self.shared.find, places);
        let now = Instant::now();
        let again = now + RETRY.max(now.duration_since(began) * OWNER_REST);
        for at in waits {
            let Some(wait) = self.waits.get_mut(*at) else { continue };
            let query = &wait.want.query;
            let entries = holders.iter().filter(|(place, _)| place.0 == query.port());
            let mut entries = entries.map(|(place, holders)| entry(place, holders, query.unit()).0);
            match entries.find(|port| query.unit().is_none_or(|unit| port.handle == Some(unit))) {
                Some(port) => {
                    wait.want.end(Ok(port));
                    // It leaves the list like one that nobody waits for.
                    wait.want.cancel();
                }
                None => wait.retry(again),
            }
        }
        self.drop_cancelled();
    }

    /// How long to sleep, if nothing happens.
    fn sleep(&self) -> Duration {
        let now = Instant::now();
        // Nothing is told or met any more once the last wait has ended: the thread ends at once.
        if self.waits.is_empty() && self.told.is_none() {
            return Duration::ZERO;
        }
        let look = self.epoch + self.schedule.next();
        let next = self.waits.iter().filter_map(Wait::deadline).fold(look, Instant::min);
        next.saturating_duration_since(now)
    }
}
