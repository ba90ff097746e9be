//! Spare capacity of collections: memory that was needed once, when there were more entries.

use std::collections::HashMap;
use std::hash::Hash;

/// Up to this capacity, a map is not shrunk.
const SMALL: usize = 64;

/// Reduces the capacity of a map that uses less than a quarter of it, to twice what it uses. Call it after each removal:
/// the cost is that of moving each remaining entry once for every two that were removed, at most.
pub(crate) fn shrink_map<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > SMALL && map.len() * 4 < map.capacity() {
        map.shrink_to(map.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_keeps_at_most_four_times_the_capacity_that_it_uses() {
        let mut map: HashMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
        let mut capacities = vec![map.capacity()];
        for n in 0..10_000 {
            map.remove(&n);
            shrink_map(&mut map);
            assert!(map.capacity() <= SMALL.max(4 * map.len()), "{} for {}", map.capacity(), map.len());
            capacities.push(map.capacity());
        }
        // The capacity also sinks by what the map cannot reuse without being moved.
        let moves = capacities.windows(2).filter(|pair| pair[1] < pair[0] * 3 / 4).count();
        assert!(moves < 10, "it is moved {moves} times");
    }
}
