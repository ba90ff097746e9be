//! The fleet: all units, with indexes by PID, name and deadline, and the limits on running and ended ones.
//!
//! Pure, like [`Unit`]. It updates its indexes at every step of a unit. `T` is the data that the supervisor keeps per
//! unit.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::model::{Pid, Target, UnitId};
use crate::shrink::shrink_map;
use crate::unit::{Action, Event, Now, Unit};

/// Maximum number of PIDs by which one unit can be addressed: that of its first run, which the client was given, and
/// those of its latest runs. It bounds the memory used for a process that keeps crashing.
const OLD_PIDS: usize = 256;

/// Maximum size of the specs of all ended units together, in bytes. Each spec can be as long as a request.
const KEPT_BYTES: usize = 16 << 20;

/// Limits of the fleet (docs/api.md, Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of units that are up or backing off at the same time, excluding sessions.
    pub max_running: usize,
    /// Maximum number of ended units that are remembered, excluding sessions.
    pub keep_ended: usize,
    /// Maximum number of terminal sessions that are up at the same time, and of ended ones that are remembered.
    pub max_sessions: usize,
}

/// A unit of the fleet.
#[derive(Debug)]
pub struct Member<T> {
    /// The unit.
    pub unit: Unit,
    /// The data that the supervisor keeps for it.
    pub context: T,
    /// Size of its spec in bytes.
    weight: usize,
    /// Its key in [`Fleet::due`].
    deadline: Option<Duration>,
    /// The PIDs of its runs by which it can be addressed.
    pids: VecDeque<Pid>,
    /// Its key in [`Ended::units`], if it is down.
    ended: Option<u64>,
    /// Whether it is a terminal session.
    session: bool,
}

/// The units that are down, in the order in which they ended, and the size of their specs in bytes.
#[derive(Debug, Default)]
struct Ended {
    /// The rank of each end, which increases, and the unit. One block of memory: the nodes of a tree, which are allocated
    /// between other blocks that are freed soon, would keep many pages in use.
    units: VecDeque<(u64, UnitId)>,
    weight: usize,
}

impl Ended {
    /// Adds a unit, which has ended last.
    fn push(&mut self, rank: u64, id: UnitId, weight: usize) {
        self.units.push_back((rank, id));
        self.weight += weight;
    }

    /// Removes the unit whose end has this rank.
    fn remove(&mut self, rank: u64, weight: usize) {
        if let Ok(at) = self.units.binary_search_by_key(&rank, |(rank, _)| *rank) {
            self.units.remove(at);
            self.weight -= weight;
        }
    }
}

/// All units.
#[derive(Debug)]
pub struct Fleet<T> {
    bounds: Bounds,
    /// Boxed: a node of the tree has room for eleven entries, and half of it is unused after ascending insertions.
    members: BTreeMap<UnitId, Box<Member<T>>>,
    by_pid: HashMap<Pid, UnitId>,
    by_name: HashMap<String, UnitId>,
    due: BTreeSet<(Duration, UnitId)>,
    ended: Ended,
    sessions: usize,
    ended_sessions: Ended,
    last_ended: u64,
    /// Abandoned leaders, with the units that they led. They count as running processes until they are reaped.
    abandoned: HashMap<Pid, UnitId>,
    /// See [`Fleet::leaders`]. Copied when it changes while another thread uses it.
    leaders: Arc<HashSet<Pid>>,
}

impl<T> Fleet<T> {
    /// An empty fleet.
    pub fn new(bounds: Bounds) -> Fleet<T> {
        Fleet {
            bounds,
            members: BTreeMap::new(),
            by_pid: HashMap::new(),
            by_name: HashMap::new(),
            due: BTreeSet::new(),
            ended: Ended::default(),
            sessions: 0,
            ended_sessions: Ended::default(),
            last_ended: 0,
            abandoned: HashMap::new(),
            leaders: Arc::default(),
        }
    }

    /// Admits a unit, which is still down, under an id that was never used. `context` is called only if the unit is
    /// admitted; `weight` is the size of its spec in bytes.
    ///
    /// A terminal session has separate limits, and is not found by its PID.
    ///
    /// # Errors
    /// [`Error::TooManyProcesses`], [`Error::TooManySessions`] or [`Error::NameInUse`].
    pub fn admit(&mut self, id: UnitId, unit: Unit, weight: usize, context: impl FnOnce() -> T) -> Result<(), Error> {
        if unit.has_terminal() {
            return self.admit_session(id, unit, weight, context);
        }
        self.check_room()?;
        if let Some(name) = unit.managed().and_then(|managed| managed.name.clone()) {
            self.check_name(&name, None)?;
            self.by_name.insert(name, id);
        }
        self.insert(id, unit, weight, context(), false);
        Ok(())
    }

    fn admit_session(
        &mut self,
        id: UnitId,
        unit: Unit,
        weight: usize,
        context: impl FnOnce() -> T,
    ) -> Result<(), Error> {
        if self.sessions - self.ended_sessions.units.len() >= self.bounds.max_sessions {
            return Err(Error::TooManySessions(self.bounds.max_sessions));
        }
        self.sessions += 1;
        self.insert(id, unit, weight, context(), true);
        Ok(())
    }

    fn insert(&mut self, id: UnitId, unit: Unit, weight: usize, context: T, session: bool) {
        let member = Member { unit, context, weight, deadline: None, pids: VecDeque::new(), ended: None, session };
        self.members.insert(id, Box::new(member));
    }

    fn check_room(&self) -> Result<(), Error> {
        if self.running() + self.abandoned.len() >= self.bounds.max_running {
            return Err(Error::TooManyProcesses(self.bounds.max_running));
        }
        Ok(())
    }

    fn check_name(&self, name: &str, except: Option<UnitId>) -> Result<(), Error> {
        match self.by_name.get(name) {
            Some(holder)
                if Some(*holder) != except && self.get(*holder).is_some_and(|member| !member.unit.is_released()) =>
            {
                Err(Error::NameInUse(name.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Claims the name of a managed unit again before a restart, and checks the limit of running units if it is down.
    ///
    /// # Errors
    /// [`Error::NameInUse`] or [`Error::TooManyProcesses`].
    pub fn claim_for_restart(&mut self, id: UnitId) -> Result<(), Error> {
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        if member.unit.is_down() {
            self.check_room()?;
        }
        let Some(name) = member.unit.managed().and_then(|managed| managed.name.clone()) else { return Ok(()) };
        self.check_name(&name, Some(id))?;
        self.by_name.insert(name, id);
        Ok(())
    }

    /// Passes one event to a unit, and updates the indexes.
    pub fn step(&mut self, id: UnitId, now: Now, event: Event, out: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let spawned = match event {
            Event::Spawned(pid) => Some(pid),
            _ => None,
        };
        let before = member.unit.leader();
        member.unit.step(now, event, out);
        let leader = member.unit.leader();
        if leader != before {
            let leaders = Arc::make_mut(&mut self.leaders);
            before.filter(|pid| !self.abandoned.contains_key(pid)).map(|pid| leaders.remove(&pid));
            leaders.extend(leader);
        }
        if let Some(pid) = spawned {
            member.pids.push_back(pid);
            if member.pids.len() > OLD_PIDS
                && let Some(old) = member.pids.remove(1)
                && self.by_pid.get(&old) == Some(&id)
                && !member.pids.contains(&old)
            {
                self.by_pid.remove(&old);
            }
            self.by_pid.insert(pid, id);
        }
        let deadline = member.unit.deadline();
        if deadline != member.deadline {
            if let Some(old) = member.deadline {
                self.due.remove(&(old, id));
            }
            if let Some(new) = deadline {
                self.due.insert((new, id));
            }
            member.deadline = deadline;
        }
        let ended = if member.session { &mut self.ended_sessions } else { &mut self.ended };
        match (member.unit.is_down(), member.ended) {
            (true, None) => {
                self.last_ended += 1;
                member.ended = Some(self.last_ended);
                ended.push(self.last_ended, id, member.weight);
            }
            (false, Some(order)) => {
                member.ended = None;
                ended.remove(order, member.weight);
            }
            _ => {}
        }
    }

    /// The next deadline of any unit.
    pub fn deadline(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A unit whose deadline has passed.
    pub fn due(&self, now: Now) -> Option<UnitId> {
        self.due.first().filter(|(at, _)| *at <= now.mono).map(|(_, id)| *id)
    }

    /// Removes the unit that ended first, if the ended units exceed a limit.
    pub fn pop_surplus(&mut self) -> Option<(UnitId, Member<T>)> {
        let kinds = [(&self.ended, self.bounds.keep_ended), (&self.ended_sessions, self.bounds.max_sessions)];
        let is_too_much = |(ended, most): &(&Ended, usize)| ended.units.len() > *most || ended.weight > KEPT_BYTES;
        // A unit with a deadline still has to kill its tree.
        let is_done = |id: &&UnitId| {
            self.members.get(id).is_some_and(|member| member.deadline.is_none())
                && !self.abandoned.values().any(|abandoned| abandoned == *id)
        };
        let surplus = kinds.into_iter().filter(is_too_much);
        let oldest =
            surplus.filter_map(|(ended, _)| ended.units.iter().map(|(_, id)| id).find(is_done).copied()).next()?;
        Some((oldest, self.remove(oldest)?))
    }

    /// Removes a unit.
    pub fn remove(&mut self, id: UnitId) -> Option<Member<T>> {
        let member = self.members.remove(&id)?;
        if let Some(leader) = member.unit.leader().filter(|pid| !self.abandoned.contains_key(pid)) {
            Arc::make_mut(&mut self.leaders).remove(&leader);
        }
        for pid in &member.pids {
            if self.by_pid.get(pid) == Some(&id) {
                self.by_pid.remove(pid);
            }
        }
        if let Some(name) = member.unit.managed().and_then(|managed| managed.name.as_ref())
            && self.by_name.get(name) == Some(&id)
        {
            self.by_name.remove(name);
        }
        if let Some(at) = member.deadline {
            self.due.remove(&(at, id));
        }
        let ended = if member.session { &mut self.ended_sessions } else { &mut self.ended };
        if let Some(order) = member.ended {
            ended.remove(order, member.weight);
        }
        self.sessions -= usize::from(member.session);
        shrink_map(&mut self.by_pid);
        Some(*member)
    }

    /// The unit that a request addresses.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn find(&self, target: &Target) -> Result<UnitId, Error> {
        let found = match target {
            Target::Unit(id) => Some(*id),
            Target::Pid(pid) => Pid::try_from(*pid).ok().and_then(|pid| self.by_pid.get(&pid).copied()),
            Target::Name(name) => self.by_name.get(name).copied(),
        };
        let shown = |id: &UnitId| self.members.get(id).is_some_and(|member| !member.session);
        found.filter(shown).ok_or_else(|| Error::NotFound(target.clone()))
    }

    /// The unit whose leader is `pid` and has not been reaped.
    pub fn led_by(&self, pid: Pid) -> Option<UnitId> {
        let id = *self.by_pid.get(&pid)?;
        (self.get(id)?.unit.leader() == Some(pid)).then_some(id)
    }

    /// The leaders of all units that have not been reaped, as they are now.
    pub fn leaders(&self) -> Arc<HashSet<Pid>> {
        Arc::clone(&self.leaders)
    }

    /// Records that the unit no longer waits for the reaping of this leader. The unit is kept until [`Fleet::reaped`].
    pub fn abandon(&mut self, id: UnitId, pid: Pid) {
        self.abandoned.insert(pid, id);
        Arc::make_mut(&mut self.leaders).insert(pid);
    }

    /// Records the reaping of a process that leads no unit. If it is an abandoned leader, returns its unit.
    pub fn reaped(&mut self, pid: Pid) -> Option<UnitId> {
        let unit = self.abandoned.remove(&pid)?;
        Arc::make_mut(&mut self.leaders).remove(&pid);
        Some(unit)
    }

    /// One unit.
    pub fn get(&self, id: UnitId) -> Option<&Member<T>> {
        self.members.get(&id).map(|member| &**member)
    }

    /// One unit.
    pub fn get_mut(&mut self, id: UnitId) -> Option<&mut Member<T>> {
        self.members.get_mut(&id).map(|member| &mut **member)
    }

    /// All units, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (UnitId, &Member<T>)> {
        self.members.iter().map(|(id, member)| (*id, &**member))
    }

    /// The units that are younger than `after`, or all, oldest first.
    pub fn after(&self, after: Option<UnitId>) -> impl Iterator<Item = (UnitId, &Member<T>)> {
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.members.range((first, Bound::Unbounded)).map(|(id, member)| (*id, &**member))
    }

    /// All units in the order in which a shutdown terminates them: managed processes, then terminal sessions, then the
    /// others, each group from the newest to the oldest.
    pub fn shutdown_order(&self) -> Vec<UnitId> {
        let mut units: Vec<_> = self.iter().rev().collect();
        units.sort_by_key(|(_, member)| match (member.unit.managed(), member.unit.has_terminal()) {
            (Some(_), _) => 0,
            (None, true) => 1,
            (None, false) => 2,
        });
        units.into_iter().map(|(id, _)| id).collect()
    }

    /// Number of units that are up or will restart by themselves, excluding sessions.
    pub fn running(&self) -> usize {
        self.len() - self.ended.units.len()
    }

    /// Whether all units, including sessions, are down.
    pub fn is_quiet(&self) -> bool {
        self.running() == 0 && self.sessions == self.ended_sessions.units.len()
    }

    /// Number of units, including ended ones and excluding sessions.
    pub fn len(&self) -> usize {
        self.members.len() - self.sessions
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
#[cfg(test)]
mod tests;
