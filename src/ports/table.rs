//! [`Table`]: which sockets listen where, and what has changed since an earlier table. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// The listening sockets at each place, by their inode numbers. A place is a port and an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<P>(BTreeMap<P, BTreeSet<u64>>);

/// What has changed from one table to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<P> {
    /// The places where nothing listens any more, or only sockets that were opened since.
    pub closed: Vec<P>,
    /// The places where a socket listens, and none of the earlier table does.
    pub opened: Vec<P>,
}

impl<P: Ord> Default for Table<P> {
    fn default() -> Table<P> {
        Table(BTreeMap::new())
    }
}

impl<P: Ord + Clone> Table<P> {
    /// The table of these sockets.
    pub fn of(sockets: impl IntoIterator<Item = (P, u64)>) -> Table<P> {
        let mut table = Table::default();
        for (place, inode) in sockets {
            table.0.entry(place).or_insert_with(BTreeSet::new).insert(inode);
        }
        table
    }

    /// The places in order, with the sockets that listen there.
    pub fn iter(&self) -> impl Iterator<Item = (&P, &BTreeSet<u64>)> {
        self.0.iter()
    }

    /// The sockets that listen at a place.
    pub fn get(&self, place: &P) -> Option<&BTreeSet<u64>> {
        self.0.get(place)
    }

    /// What has changed from this table to `later`. A place whose sockets were all replaced was closed and opened again.
    pub fn changes(&self, later: &Table<P>) -> Changes<P> {
        let only_in = |one: &Table<P>, other: &Table<P>| -> Vec<P> {
            let stays = |place: &P, sockets: &BTreeSet<u64>| {
                other.0.get(place).is_some_and(|others| !others.is_disjoint(sockets))
            };
            one.0.iter().filter(|(place, sockets)| !stays(place, sockets)).map(|(place, _)| place.clone()).collect()
        };
        Changes { closed: only_in(self, later), opened: only_in(later, self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All tables with up to two sockets at each of two places.
    fn all_tables() -> Vec<Table<&'static str>> {
        let sets: [&[u64]; 7] = [&[], &[1], &[2], &[3], &[1, 2], &[2, 3], &[1, 3]];
        let of = |place, set: &[u64]| set.iter().map(|inode| (place, *inode)).collect::<Vec<_>>();
        let pairs = sets.iter().flat_map(|a| sets.iter().map(move |b| (a, b)));
        pairs.map(|(a, b)| Table::of([of("a", a), of("b", b)].concat())).collect()
    }

    #[test]
    fn a_place_is_closed_or_opened_if_no_socket_of_it_stays() {
        for before in all_tables() {
            for after in all_tables() {
                let changes = before.changes(&after);
                for place in ["a", "b"] {
                    let none = BTreeSet::new();
                    let was = before.get(&place).unwrap_or(&none);
                    let is = after.get(&place).unwrap_or(&none);
                    let stays = was.intersection(is).next().is_some();
                    assert_eq!(changes.closed.contains(&place), !was.is_empty() && !stays, "{before:?} {after:?}");
                    assert_eq!(changes.opened.contains(&place), !is.is_empty() && !stays, "{before:?} {after:?}");
                }
                assert_eq!(after.changes(&before), Changes { closed: changes.opened, opened: changes.closed });
            }
        }
    }

    #[test]
    fn places_come_in_order_and_each_once() {
        let table = Table::of([(80, 3), (22, 1), (80, 2), (80, 3)]);
        let all: Vec<_> = table.iter().map(|(place, sockets)| (*place, sockets.len())).collect();
        assert_eq!(all, [(22, 1), (80, 2)]);
    }
}
