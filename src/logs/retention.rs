//! Decides which segments are dropped when all logs together exceed their limit (docs/api.md, Limits). Pure: deletes
//! nothing.
//!
//! Ended units lose their oldest segments first, in the order in which they ended. Then the largest log of a live unit
//! loses its oldest segment, and so on.

use std::collections::BinaryHeap;

use crate::model::UnitId;

/// The segments of one log on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The unit of the log.
    pub unit: UnitId,
    /// The rank of the unit's end among all ends; None while the unit lives.
    pub ended: Option<u64>,
    /// The sizes of its segments, in bytes, oldest first.
    pub segments: Vec<u64>,
}

impl Holding {
    fn bytes(&self) -> u64 {
        self.segments.iter().sum()
    }
}

/// The number of oldest segments that each log loses to free at least `excess` bytes, or all bytes if there are fewer.
pub fn to_drop(mut logs: Vec<Holding>, excess: u64) -> Vec<(UnitId, usize)> {
    let mut plan = Vec::new();
    let mut freed = 0;
    // Ended units first: None sorts before Some.
    logs.sort_by_key(|log| (log.ended.is_none(), log.ended, log.unit));
    let live = logs.partition_point(|log| log.ended.is_some());
    for log in logs.iter().take(live) {
        let mut count = 0;
        for size in &log.segments {
            if freed >= excess {
                break;
            }
            count += 1;
            freed += size;
        }
        if count > 0 {
            plan.push((log.unit, count));
        }
    }
    // The largest log first; among equally large ones that of the oldest unit.
    let mut heap: BinaryHeap<_> =
        logs.iter().skip(live).map(|log| (log.bytes(), std::cmp::Reverse(log.unit), 0, &log.segments)).collect();
    while freed < excess
        && let Some((bytes, unit, dropped, segments)) = heap.pop()
    {
        match segments.get(dropped) {
            Some(size) => {
                freed += size;
                heap.push((bytes.saturating_sub(*size), unit, dropped + 1, segments));
            }
            None if dropped > 0 => plan.push((unit.0, dropped)),
            None => {}
        }
    }
    plan.extend(heap.into_iter().filter(|log| log.2 > 0).map(|log| (log.1.0, log.2)));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn log(unit: u64, ended: Option<u64>, segments: &[u64]) -> Holding {
        Holding { unit: UnitId(unit), ended, segments: segments.to_vec() }
    }

    fn plan(logs: &[Holding], excess: u64) -> BTreeMap<u64, usize> {
        let plan = to_drop(logs.to_vec(), excess);
        let map: BTreeMap<_, _> = plan.iter().map(|(unit, count)| (unit.0, *count)).collect();
        assert_eq!(map.len(), plan.len(), "each unit occurs once");
        map
    }

    #[test]
    fn ended_units_lose_segments_first_in_their_order_then_the_largest_log() {
        let logs = [
            log(1, None, &[10, 10, 5]),
            log(2, Some(7), &[4, 4]),
            log(3, Some(2), &[3]),
            log(4, None, &[10, 10, 10]),
            log(5, Some(9), &[]),
        ];
        assert_eq!(plan(&logs, 0), BTreeMap::new());
        assert_eq!(plan(&logs, 1), [(3, 1)].into());
        assert_eq!(plan(&logs, 3), [(3, 1)].into());
        assert_eq!(plan(&logs, 4), [(2, 1), (3, 1)].into());
        assert_eq!(plan(&logs, 11), [(2, 2), (3, 1)].into());
        assert_eq!(plan(&logs, 12), [(2, 2), (3, 1), (4, 1)].into());
        assert_eq!(plan(&logs, 22), [(1, 1), (2, 2), (3, 1), (4, 1)].into());
        assert_eq!(plan(&logs, 32), [(1, 1), (2, 2), (3, 1), (4, 2)].into());
        assert_eq!(plan(&logs, 1000), [(1, 3), (2, 2), (3, 1), (4, 3)].into());
    }

    /// Drops one segment at a time, according to the rule in the module's documentation.
    fn model(mut logs: Vec<Holding>, excess: u64) -> BTreeMap<u64, usize> {
        let mut plan = BTreeMap::new();
        let mut freed = 0;
        while freed < excess {
            let mut victim: Option<&mut Holding> = None;
            for log in logs.iter_mut().filter(|log| !log.segments.is_empty()) {
                let better = match &victim {
                    None => true,
                    Some(best) => match (log.ended, best.ended) {
                        (Some(a), Some(b)) => a < b,
                        (Some(_), None) => true,
                        (None, Some(_)) => false,
                        (None, None) => log.bytes() > best.bytes(),
                    },
                };
                if better {
                    victim = Some(log);
                }
            }
            let Some(victim) = victim else { break };
            freed += victim.segments.remove(0);
            *plan.entry(victim.unit.0).or_default() += 1;
        }
        plan
    }

    #[test]
    fn the_plan_equals_dropping_one_segment_at_a_time() {
        // Every combination of three logs with up to two segments of three sizes, live or ended in either order.
        let mut shapes = vec![vec![]];
        for a in 1..=3 {
            shapes.push(vec![a]);
            for b in 1..=3 {
                shapes.push(vec![a, b]);
            }
        }
        let ends = [[None; 3], [Some(1), None, None], [Some(2), Some(1), None], [Some(3), Some(1), Some(2)]];
        for a in &shapes {
            for b in &shapes {
                for c in &shapes {
                    for ended in ends {
                        let logs = vec![log(1, ended[0], a), log(2, ended[1], b), log(3, ended[2], c)];
                        for excess in [0, 1, 2, 3, 5, 8, 13, 100] {
                            assert_eq!(plan(&logs, excess), model(logs.clone(), excess), "{logs:?}, excess {excess}");
                        }
                    }
                }
            }
        }
    }
}
