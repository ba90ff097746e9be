use std::sync::Arc;

use super::*;
use crate::model::UnitId;

const ALL: EventFilter = EventFilter { handle: None, ports: false };
const FIRST: u64 = 1_790_000_000_000_000;

fn subject(unit: u64) -> Option<EventSubject> {
    Some(EventSubject::new(UnitId(unit), Some(1), None))
}

fn stopped(error: &str) -> EventKind {
    EventKind::ProcessStopped { last_error: Some(Arc::from(error)) }
}

/// A ring in which the events with these units were added, from the number `FIRST` on.
fn ring(units: impl IntoIterator<Item = u64>) -> Ring {
    let mut ring = Ring::new(FIRST);
    for (n, unit) in units.into_iter().enumerate() {
        assert_eq!(ring.push(n as u64, subject(unit), EventKind::OutputTruncated), FIRST + n as u64);
    }
    ring
}

/// What a reader finds up to the end: numbers of events, and `Err` with the number of lost events for a gap.
fn read_all(ring: &Ring, mut position: Position, filter: EventFilter) -> Vec<Result<u64, u64>> {
    let found = std::iter::from_fn(|| ring.read(&mut position, &filter)).map(|read| match read {
        Read::Event(event) => Ok(event.id),
        Read::Gap { lost, .. } => Err(lost),
    });
    let found = found.collect();
    assert_eq!(position, ring.end());
    found
}

#[test]
fn a_reader_begins_where_it_asks_and_gets_each_event_once() {
    // Every number of events, and every number after which a reader can begin, in a ring that has lost nothing.
    for count in 0..5 {
        let ring = ring(0..count);
        let from = |start| read_all(&ring, ring.begin(start), ALL);
        let events = |range: std::ops::Range<u64>| range.map(|n| Ok(FIRST + n)).collect::<Vec<_>>();
        assert_eq!(from(EventStart::Now), []);
        assert_eq!(from(EventStart::Oldest), events(0..count));
        assert_eq!(from(EventStart::After(0)), events(0..count));
        assert_eq!(from(EventStart::After(FIRST - 1)), events(0..count));
        for n in 0..count {
            assert_eq!(from(EventStart::After(FIRST + n)), events(n + 1..count), "after event {n} of {count}");
        }
        let foreign = [vec![Err(0)], events(0..count)].concat();
        for id in [1, FIRST - 2, FIRST + count, FIRST + count + 1, u64::MAX - 1, u64::MAX] {
            assert_eq!(from(EventStart::After(id)), foreign, "after event {id}, {count} events");
        }
    }
}

#[test]
fn the_last_ten_thousand_are_kept_and_a_gap_says_how_many_were_lost() {
    for more in [0, 1, 2, 777, 10_000, 25_000] {
        let count = MAX_EVENTS as u64 + more;
        let ring = ring((0..count).map(|_| 1));
        let kept: Vec<_> = (more..count).map(|n| Ok(FIRST + n)).collect();
        let expect = |start, lost: Option<u64>| {
            let right: Vec<_> = lost.map(Err).into_iter().chain(kept.iter().copied()).collect();
            assert!(read_all(&ring, ring.begin(start), ALL) == right, "{start:?}, {more} more");
        };
        expect(EventStart::Oldest, None);
        expect(EventStart::After(0), (more > 0).then_some(more));
        expect(EventStart::After(1), Some(more));
        expect(EventStart::After(FIRST + count), Some(more));
        if more > 1 {
            expect(EventStart::After(FIRST + more - 1), None);
            expect(EventStart::After(FIRST + more - 2), Some(1));
            expect(EventStart::After(FIRST), Some(more - 1));
        }
        assert!(ring.kept.capacity() <= MAX_EVENTS + 1, "{}", ring.kept.capacity());
    }
}

#[test]
fn a_reader_that_resumes_after_its_gap_gets_no_second_one() {
    let ring = ring((0..MAX_EVENTS as u64 + 5).map(|_| 1));
    for start in [EventStart::After(0), EventStart::After(7), EventStart::After(FIRST + 1)] {
        let mut position = ring.begin(start);
        let Some(Read::Gap { before, .. }) = ring.read(&mut position, &ALL) else { panic!("{start:?}") };
        assert_eq!(before, FIRST + 4);
        let again = read_all(&ring, ring.begin(EventStart::After(before)), ALL);
        assert_eq!((again.len(), again[0]), (MAX_EVENTS, Ok(FIRST + 5)));
    }
}

#[test]
fn a_gap_before_the_first_event_can_be_resumed_after() {
    let ring = ring(0..3);
    let mut position = ring.begin(EventStart::After(5));
    assert_eq!(ring.read(&mut position, &ALL), Some(Read::Gap { lost: 0, before: FIRST - 1 }));
    assert_eq!(read_all(&ring, ring.begin(EventStart::After(FIRST - 1)), ALL).len(), 3);
}

#[test]
fn the_kept_events_take_a_mebibyte_at_most_and_the_latest_one_is_kept() {
    // Ten thousand events with short texts fit.
    assert!(size_of::<Kept>() <= 80, "{} bytes", size_of::<Kept>());
    let mut ring = Ring::new(FIRST);
    for n in 0..3_000_u64 {
        let name = Some(Arc::from("n".repeat(100)));
        let about = Some(EventSubject { name, ..EventSubject::new(UnitId(1), None, None) });
        ring.push(0, about, stopped(&"x".repeat(n as usize % 3_000)));
        assert!(ring.bytes <= MAX_BYTES);
        assert_eq!(ring.bytes, ring.kept.iter().map(Kept::cost).sum::<usize>());
    }
    let count = ring.kept.len();
    assert!((300..1_000).contains(&count), "{count} events");
    let all = read_all(&ring, ring.begin(EventStart::After(0)), ALL);
    assert_eq!((all[0], all.len()), (Err(3_000 - count as u64), count + 1));
    let last = ring.push(0, None, stopped(&"x".repeat(2 * MAX_BYTES)));
    assert_eq!(read_all(&ring, ring.begin(EventStart::Oldest), ALL), [Ok(last)]);
    let last = ring.push(0, None, EventKind::DaemonShutdown);
    assert_eq!(read_all(&ring, ring.begin(EventStart::Oldest), ALL), [Ok(last)]);
}

#[test]
fn a_filter_admits_one_process_and_what_is_about_none() {
    let mut ring = ring([1, 2, 1, 3, 2]);
    ring.push(0, None, EventKind::DaemonShutdown);
    for (unit, right) in [(1, vec![0, 2, 5]), (2, vec![1, 4, 5]), (3, vec![3, 5]), (4, vec![5])] {
        let filter = EventFilter { handle: Some(UnitId(unit)), ports: false };
        let right: Vec<_> = right.into_iter().map(|n| Ok(FIRST + n)).collect();
        assert_eq!(read_all(&ring, ring.begin(EventStart::Oldest), filter), right);
    }
}
