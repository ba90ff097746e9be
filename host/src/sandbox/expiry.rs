//! Which sandboxes are due: those whose time is over, and those that were terminated long ago. Pure.

use std::time::Instant;

use crate::sandbox::model::Millis;

/// How long a terminated sandbox stays listed.
pub(crate) const KEPT_TERMINATED: Millis = 60 * 60 * 1000;

/// The maximum number of terminated sandboxes that stay listed.
pub(crate) const MAX_TERMINATED: usize = 10_000;

/// Divides deadlines into the ids of those that are over, earliest first, and the earliest of the others.
pub(crate) fn due<'a>(
    deadlines: impl Iterator<Item = (&'a str, Instant)>,
    now: Instant,
) -> (Vec<String>, Option<Instant>) {
    let (mut over, later): (Vec<_>, Vec<_>) = deadlines.partition(|(_, deadline)| *deadline <= now);
    over.sort_by_key(|(_, deadline)| *deadline);
    let next = later.into_iter().map(|(_, deadline)| deadline).min();
    (over.into_iter().map(|(id, _)| id.to_owned()).collect(), next)
}

/// Which terminated sandboxes are forgotten: those that have been terminated for an hour, and the oldest beyond `max`.
/// Also returns after how many milliseconds the next is due.
pub(crate) fn forgotten<'a>(
    terminated: impl Iterator<Item = (&'a str, Millis)>,
    now: Millis,
    max: usize,
) -> (Vec<String>, Option<Millis>) {
    let mut newest_first: Vec<(&str, Millis)> = terminated.collect();
    newest_first.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
    let is_old = |at: Millis| now.saturating_sub(at) >= KEPT_TERMINATED;
    let kept = newest_first.iter().take(max).take_while(|(_, at)| !is_old(*at)).count();
    let (kept, old) = newest_first.split_at_checked(kept).unwrap_or((&newest_first, &[]));
    let next = kept.last().map(|(_, at)| (at + KEPT_TERMINATED).saturating_sub(now));
    (old.iter().map(|(id, _)| (*id).to_owned()).collect(), next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_over_comes_earliest_first_and_the_next_is_the_earliest_of_the_others() {
        let now = Instant::now();
        let at = |milliseconds: i64| {
            let distance = Duration::from_millis(milliseconds.unsigned_abs());
            if milliseconds < 0 { now - distance } else { now + distance }
        };
        for (deadlines, over, next) in [
            (vec![], vec![], None),
            (vec![("a", 1)], vec![], Some(1)),
            (vec![("a", 0)], vec!["a"], None),
            (vec![("a", 7), ("b", -1), ("c", 5), ("d", -3), ("e", 0)], vec!["d", "b", "e"], Some(5)),
        ] {
            let found = due(deadlines.into_iter().map(|(id, milliseconds)| (id, at(milliseconds))), now);
            assert_eq!(found, (over.into_iter().map(str::to_owned).collect(), next.map(at)));
        }
    }

    /// All sets of up to four sandboxes of these ages, compared with the rule in other words.
    #[test]
    fn each_is_forgotten_after_an_hour_or_if_it_is_beyond_the_maximum() {
        const NOW: Millis = 100 * KEPT_TERMINATED;
        let ages = [0, 1, KEPT_TERMINATED - 1, KEPT_TERMINATED, KEPT_TERMINATED + 1, 50 * KEPT_TERMINATED];
        let ids = ["a", "b", "c", "d"];
        for max in 0..=4 {
            for choice in 0..ages.len().pow(4) {
                let age = |place: u32| ages[choice / ages.len().pow(place) % ages.len()];
                let all: Vec<(&str, Millis)> = (0..4).map(|place| (ids[place as usize], NOW - age(place))).collect();
                let (forgotten, next) = forgotten(all.iter().copied(), NOW, max);
                let is_forgotten = |id: &str| forgotten.iter().any(|other| other == id);
                let kept: Vec<_> = all.iter().filter(|(id, _)| !is_forgotten(id)).collect();
                let young = all.iter().filter(|(_, at)| NOW - at < KEPT_TERMINATED).count();
                assert_eq!(kept.len(), young.min(max), "{all:?}");
                assert!(kept.iter().all(|(_, at)| NOW - at < KEPT_TERMINATED), "{all:?}");
                let newest = all.iter().filter(|(id, _)| is_forgotten(id)).map(|(_, at)| *at).max();
                assert!(kept.iter().all(|(_, at)| newest.is_none_or(|newest| newest <= *at)), "{all:?}");
                let oldest_kept = kept.iter().map(|(_, at)| at + KEPT_TERMINATED - NOW).min();
                assert_eq!(next, oldest_kept, "{all:?}");
            }
        }
    }

    #[test]
    fn a_clock_that_was_set_back_forgets_nothing() {
        assert_eq!(forgotten([("a", 5000)].into_iter(), 1000, 10), (vec![], Some(KEPT_TERMINATED + 4000)));
    }
}
