//! Searches every reachable state of a unit together with its simulated environment, and checks the invariants in each.
//!
//! Counts are capped, so that the number of states is finite.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::*;
use crate::unit::invariants::{Node, World, check, check_stop, follow, inputs};

/// Caps the counts: higher ones are equivalent.
fn cap(unit: &mut Unit) {
    unit.run = unit.run.min(2);
    unit.watch = unit.watch.min(2);
    unit.restarts = unit.restarts.min(4);
    unit.short_runs = unit.short_runs.min(SHORT_RUNS);
    unit.health.failures = unit.health.failures.min(2);
    unit.last_error = unit.last_error.as_ref().map(|_| String::new());
    unit.next_restart_at = unit.next_restart_at.map(|_| 0);
}

fn walk(unit: Unit) -> usize {
    let start = Node { unit, world: World::default() };
    let mut seen = HashSet::from([start.clone()]);
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        check(&node);
        check_stop(&node);
        for input in inputs(&node) {
            for mut next in follow(&node, &input) {
                cap(&mut next.unit);
                if seen.insert(next.clone()) {
                    queue.push_back(next);
                }
            }
        }
    }
    seen.len()
}

#[test]
fn no_reachable_state_breaks_an_invariant() {
    let mut nodes = walk(Unit::new(None, None)) + walk(Unit::with_terminal()) + walk(Unit::new(None, Some(300 * MS)));
    for policy in [Policy::Never, Policy::OnFailure, Policy::Always] {
        for (backoff, most) in [(500, Some(2)), (0, None)] {
            for checked in [false, true] {
                let mut spec = ManagedSpec::new(policy);
                spec.restart.initial_backoff_ms = backoff;
                spec.restart.max_restarts = most;
                spec.restart.max_backoff_ms = 2 * backoff;
                if checked {
                    health(2)(&mut spec);
                }
                nodes += walk(Unit::new(Some(Arc::new(spec)), None));
            }
        }
    }
    println!("{nodes} distinct states");
    assert!(nodes > 300_000, "the search is incomplete: {nodes}");
}
