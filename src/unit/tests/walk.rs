//! Searches every reachable state of a unit together with its simulated environment, and checks the invariants in each.
//!
//! Counts are capped, and times that no decision depends on are set to the same value, so that the number of states is
//! finite and small.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;
use crate::unit::invariants::{BASE, LONG_AGO, Node, World, check, check_stop, follow, inputs};

/// Makes equivalent states equal.
fn normalize(unit: &mut Unit) {
    unit.run = unit.run.min(2);
    // The inputs have verdicts of this watch and of the one before it.
    unit.watch = 1;
    unit.restarts = unit.restarts.min(4);
    unit.short_runs = unit.short_runs.min(SHORT_RUNS);
    unit.health.failures = unit.health.failures.min(2);
    unit.last_error = unit.last_error.as_ref().map(|_| String::new());
    unit.next_restart_at = unit.next_restart_at.map(|_| 0);
    let has_check = unit.managed.as_ref().is_some_and(|managed| managed.health.is_some());
    let State::Up(run) = &mut unit.state else {
        // The next run begins without it.
        unit.health.healthy_since = None;
        return;
    };
    // It is only reported.
    run.since = BASE;
    // The end of a pause moves these times by its length, so only their distance from its beginning matters.
    if let Some(paused_at) = &mut run.paused_at {
        let paused = BASE - *paused_at;
        let move_on = |at: &mut Duration| *at = (*at + paused).max(BASE - LONG_AGO);
        *paused_at = BASE;
        move_on(&mut run.counted_from);
        unit.health.healthy_since.iter_mut().for_each(move_on);
    }
    // With a health check, the length of a run only decides whether it is a short one.
    if has_check && BASE - run.counted_from >= SHORT_RUN {
        run.counted_from = BASE - LONG_AGO;
    }
}

/// A quick hash of few bits: that of the standard library takes a third of the time of the search.
#[derive(Default)]
struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.write_u64(word);
        }
    }
    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }
    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }
    fn write_u64(&mut self, number: u64) {
        // Multiplication by an odd constant, with the high bits brought down.
        let mixed = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

fn walk(unit: Unit) -> usize {
    let managed = unit.managed.clone();
    // All states have the same spec, so it need not be hashed.
    let without_spec = |mut node: Node| {
        node.unit.managed = None;
        Arc::new(node)
    };
    let start = without_spec(Node { unit, world: World::default() });
    let mut seen: HashSet<Arc<Node>, BuildHasherDefault<QuickHasher>> = HashSet::from_iter([Arc::clone(&start)]);
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        let mut node = Node::clone(&node);
        node.unit.managed.clone_from(&managed);
        check(&node);
        check_stop(&node);
        for input in inputs(&node) {
            for mut next in follow(&node, &input) {
                normalize(&mut next.unit);
                let next = without_spec(next);
                if seen.insert(Arc::clone(&next)) {
                    queue.push_back(next);
                }
            }
        }
    }
    seen.len()
}

/// The units whose states are searched: without supervision, and with every policy.
fn units() -> Vec<Unit> {
    let mut units = vec![Unit::new(None, None), Unit::with_terminal(), Unit::new(None, Some(300 * MS))];
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
                units.push(Unit::new(Some(Arc::new(spec)), None));
            }
        }
    }
    units
}

#[test]
fn no_reachable_state_breaks_an_invariant() {
    // The largest searches, those of the last units, begin first.
    let (units, nodes) = (Mutex::new(units()), AtomicUsize::new(0));
    let search = || {
        loop {
            let next = units.lock().unwrap().pop();
            let Some(unit) = next else { return };
            nodes.fetch_add(walk(unit), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(4);
        (0..threads).for_each(|_| drop(scope.spawn(search)));
    });
    let nodes = nodes.into_inner();
    println!("{nodes} distinct states");
    assert!(nodes > 400_000, "the search is incomplete: {nodes}");
}
