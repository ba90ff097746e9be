//! Which processes listen where, as the kernel and /proc show it now.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::table::Table;
use crate::events::EventSubject;
use crate::model::{Pid, Port, UnitId};
use tl_os::procfs::{Process, Snapshot, cgroup_of, name_of};
use tl_os::socket_holders::{holders, own_sockets};
use tl_os::tcp_listeners::listeners;

/// Most processes that are considered as the owner of one socket: the oldest ones that have it open.
const MAX_HOLDERS: usize = 16;

/// Most ancestors of a process that are considered.
const MAX_ANCESTRY: usize = 1_000;

/// A port and an address at which sockets listen.
pub type Place = (u16, IpAddr);

/// A process that may belong to the tree of a unit.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The process, its parent and so on, up to a child of this process.
    pub ancestry: Vec<Process>,
    /// The path of its cgroup v2, if there is one.
    pub cgroup: String,
}

/// Finds the units to whose trees these processes belong, in their order. Blocks for a limited time.
pub struct FindUnits(pub Box<dyn Fn(Vec<Candidate>) -> Vec<Option<EventSubject>> + Send + Sync>);

impl fmt::Debug for FindUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FindUnits").finish_non_exhaustive()
    }
}

/// Lists the listening sockets, those of this process aside.
#[derive(Debug, Default)]
pub struct Lister {
    /// Whether the sockets of the last list are of this process.
    known: HashMap<u64, bool>,
}

impl Lister {
    /// The sockets that listen now.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub fn list(&mut self) -> io::Result<Table<Place>> {
        let all = listeners()?;
        let new: HashSet<u64> =
            all.iter().map(|listener| listener.inode).filter(|inode| !self.known.contains_key(inode)).collect();
        let own = if new.is_empty() { HashSet::new() } else { own_sockets(&new) };
        let was_own = |inode: &u64| self.known.get(inode).copied().unwrap_or_else(|| own.contains(inode));
        self.known = all.iter().map(|listener| (listener.inode, was_own(&listener.inode))).collect();
        let others = all.iter().filter(|listener| self.known.get(&listener.inode) == Some(&false));
        Ok(Table::of(others.map(|listener| ((listener.port, listener.address), listener.inode))))
    }
}

/// A process that has a socket open, and the unit to whose tree it belongs.
#[derive(Clone, Debug)]
pub struct Holder {
    pid: Pid,
    unit: Option<EventSubject>,
}

/// The processes that have the sockets of each of these places open, oldest first.
pub fn find_holders<'p>(
    find: &FindUnits,
    places: impl IntoIterator<Item = (&'p Place, &'p BTreeSet<u64>)>,
) -> BTreeMap<Place, Vec<Holder>> {
    let places: Vec<_> = places.into_iter().collect();
    if places.is_empty() {
        return BTreeMap::new();
    }
    let snapshot = Snapshot::take();
    let by_socket = holders(&snapshot, &places.iter().flat_map(|(_, sockets)| *sockets).copied().collect());
    let of_place = |sockets: &BTreeSet<u64>| {
        let held = sockets.iter().filter_map(|inode| by_socket.get(inode));
        let mut processes: Vec<&Process> =
            held.flat_map(|processes| processes.iter().take(MAX_HOLDERS).copied()).collect();
        processes.sort_unstable_by_key(|process| (process.start, process.pid));
        processes.dedup_by_key(|process| process.pid);
        processes
    };
    let by_place: Vec<(Place, Vec<&Process>)> =
        places.into_iter().map(|(place, sockets)| (*place, of_place(sockets))).collect();
    let mut all: Vec<&Process> = by_place.iter().flat_map(|(_, processes)| processes).copied().collect();
    all.sort_unstable_by_key(|process| process.pid);
    all.dedup_by_key(|process| process.pid);
    let candidates: Vec<Candidate> = all.iter().map(|process| candidate(&snapshot, process)).collect();
    let found = if candidates.is_empty() { Vec::new() } else { (find.0)(candidates) };
    let units: HashMap<Pid, EventSubject> =
        all.iter().zip(found).filter_map(|(process, unit)| Some((process.pid, unit?))).collect();
    let holder = |process: &Process| Holder { pid: process.pid, unit: units.get(&process.pid).cloned() };
    by_place.into_iter().map(|(place, processes)| (place, processes.into_iter().map(holder).collect())).collect()
}

fn candidate(snapshot: &Snapshot, process: &Process) -> Candidate {
    let myself = std::process::id() as Pid;
    let up = std::iter::successors(Some(process), |it| snapshot.get(it.parent).filter(|parent| parent.pid != myself));
    Candidate { ancestry: up.take(MAX_ANCESTRY).copied().collect(), cgroup: cgroup_of(process.pid).unwrap_or_default() }
}

/// The entry of a place with these holders, and the unit that it is about. The owner is the oldest holder that belongs to
/// the unit `wanted`, else the oldest one that belongs to a unit, else the oldest one.
pub fn entry(place: &Place, holders: &[Holder], wanted: Option<UnitId>) -> (Port, Option<EventSubject>) {
    let handle = |holder: &Holder| holder.unit.as_ref().map(|unit| unit.handle);
    let wanted = wanted.and_then(|unit| holders.iter().find(|holder| handle(holder) == Some(unit)));
    let owner = wanted.or_else(|| holders.iter().find(|holder| holder.unit.is_some())).or_else(|| holders.first());
    let unit = owner.and_then(|owner| owner.unit.clone());
    let port = Port {
        port: place.0,
        address: place.1,
        pid: owner.map(|owner| owner.pid),
        handle: owner.and_then(handle),
        name: unit.as_ref().and_then(|unit| unit.name.clone()),
        command: owner.and_then(|owner| name_of(owner.pid)).map(Arc::from),
    };
    (port, unit)
}

/// The listening sockets of the sandbox, by port, and by address where the port is the same.
///
/// # Errors
/// If the kernel does not list them.
pub fn look(find: &FindUnits) -> io::Result<Vec<Port>> {
    let table = Lister::default().list()?;
    let holders = find_holders(find, table.iter());
    Ok(holders.iter().map(|(place, holders)| entry(place, holders, None).0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_of_the_wanted_unit_else_of_any_else_the_oldest() {
        let unit = |id| Some(EventSubject::new(UnitId(id), Some(1), Some(Arc::from("web"))));
        let place = (80, "::".parse().unwrap());
        let holders = [(10, None), (11, unit(1)), (12, unit(2)), (13, unit(2))].map(|(pid, unit)| Holder { pid, unit });
        let owner = |holders: &[Holder], wanted| {
            let (port, unit) = entry(&place, holders, wanted);
            assert_eq!(port.handle, unit.as_ref().map(|unit| unit.handle));
            assert_eq!(port.name, unit.and_then(|unit| unit.name));
            (port.pid, port.handle.map(|handle| handle.0))
        };
        assert_eq!(owner(&holders, None), (Some(11), Some(1)));
        assert_eq!(owner(&holders, Some(UnitId(2))), (Some(12), Some(2)));
        assert_eq!(owner(&holders, Some(UnitId(3))), (Some(11), Some(1)));
        assert_eq!(owner(&holders[..1], None), (Some(10), None));
        assert_eq!(owner(&[], Some(UnitId(1))), (None, None));
    }
}
