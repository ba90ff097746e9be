use std::sync::atomic::AtomicUsize;
use std::task::Wake;
use std::thread;
use std::time::Duration;

use super::*;
use crate::model::UnitId;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

fn about(unit: u64) -> Option<EventSubject> {
    Some(EventSubject::new(UnitId(unit), None, None))
}

fn only(unit: u64) -> EventFilter {
    EventFilter { handle: Some(UnitId(unit)), ..EventFilter::default() }
}

fn subscribe(log: &Arc<EventLog>, filter: EventFilter) -> (Events, Arc<Count>) {
    let count = Arc::new(Count::default());
    (log.subscribe(EventStart::Now, filter, Arc::clone(&count).into()), count)
}

fn unit(item: Option<EventItem>) -> Option<u64> {
    match item {
        Some(EventItem::Event(event)) => event.subject.map(|subject| subject.handle.0),
        Some(gap) => panic!("{gap:?}"),
        None => None,
    }
}

#[test]
fn a_subscription_is_woken_once_after_it_has_read_everything() {
    let log = EventLog::new();
    let (mut events, wakes) = subscribe(&log, EventFilter::default());
    log.push(about(1), EventKind::OutputTruncated);
    assert_eq!((wakes.take(), unit(events.try_next())), (0, Some(1)), "it has not asked for a wake-up");
    assert_eq!(events.try_next(), None);
    (2..5).for_each(|n| log.push(about(n), EventKind::OutputTruncated));
    assert_eq!(wakes.take(), 1);
    assert_eq!((2..6).map(|_| unit(events.try_next())).collect::<Vec<_>>(), [Some(2), Some(3), Some(4), None]);
    log.push(about(5), EventKind::OutputTruncated);
    assert_eq!((wakes.take(), log.lock().armed), (1, 0));
}

#[test]
fn a_filtered_subscription_is_neither_woken_nor_overtaken_by_events_about_others() {
    let log = EventLog::new();
    let (mut events, wakes) = subscribe(&log, only(7));
    assert_eq!(events.try_next(), None);
    // More than are kept: an unfiltered reader would have lost some of them.
    (0..30_000).for_each(|_| log.push(about(1), EventKind::OutputTruncated));
    assert_eq!((wakes.take(), events.try_next()), (0, None));
    (0..30_000).for_each(|_| log.push(about(1), EventKind::OutputTruncated));
    log.push(about(7), EventKind::OutputTruncated);
    (0..9_000).for_each(|_| log.push(about(1), EventKind::OutputTruncated));
    assert_eq!((wakes.take(), unit(events.try_next()), events.try_next()), (1, Some(7), None));
    // One that was woken and then does not read loses its events as any other does.
    log.push(about(7), EventKind::OutputTruncated);
    (0..12_000).for_each(|_| log.push(about(1), EventKind::OutputTruncated));
    assert!(matches!(events.try_next(), Some(EventItem::Gap { lost: 2_001, .. })));
}

#[test]
fn the_close_ends_subscriptions_after_their_last_event() {
    let log = EventLog::new();
    let (mut ready, wakes) = subscribe(&log, EventFilter::default());
    let mut late = log.subscribe(EventStart::Now, only(9), Waker::noop().clone());
    let waiting = thread::spawn(move || (late.next(None), late.next(None), late.has_ended()));
    log.push(None, EventKind::DaemonShutdown);
    log.close();
    log.push(about(1), EventKind::OutputTruncated);
    assert!(wakes.take() > 0 && ready.is_urgent());
    assert!(matches!(ready.try_next(), Some(EventItem::Event(Event { kind: EventKind::DaemonShutdown, .. }))));
    assert!(!ready.has_ended());
    assert_eq!((ready.next(None), ready.has_ended()), (None, true));
    let (first, second, ended) = waiting.join().unwrap();
    assert!(first.is_some() && second.is_none() && ended);
    let mut after = log.subscribe(EventStart::Oldest, EventFilter::default(), Waker::noop().clone());
    assert!(after.next(None).is_some() && after.next(None).is_none());
}

#[test]
fn a_deadline_ends_the_wait_for_the_next_event() {
    let log = EventLog::new();
    let mut events = log.subscribe(EventStart::Now, EventFilter::default(), Waker::noop().clone());
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!((events.next(Some(soon)), events.has_ended()), (None, false));
    assert!(Instant::now() >= soon);
}

#[test]
fn a_dropped_subscription_leaves_nothing_behind() {
    let log = EventLog::new();
    for filter in [EventFilter::default(), only(1), EventFilter { ports: true, ..EventFilter::default() }] {
        let (mut events, wakes) = subscribe(&log, filter);
        assert_eq!((events.try_next(), events.subscriptions(), log.lock().armed), (None, 1, 1));
        drop(events);
        log.push(about(1), EventKind::OutputTruncated);
        let state = log.lock();
        assert_eq!((wakes.take(), state.readers.len(), state.armed), (0, 0, 0));
    }
}

#[test]
fn the_number_of_subscriptions_that_want_ports_is_told() {
    let log = EventLog::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let to_test = Arc::clone(&told);
    log.set_on_port_readers(move |count| to_test.lock().unwrap().push(count));
    let ports = || log.subscribe(EventStart::Now, EventFilter { ports: true, handle: None }, Waker::noop().clone());
    let first = ports();
    let other = subscribe(&log, EventFilter::default());
    let second = ports();
    drop((first, other, second));
    assert_eq!(*told.lock().unwrap(), [0, 1, 2, 1, 0]);
}

#[test]
fn many_threads_get_every_event_in_order_or_a_gap_that_counts_what_is_missing() {
    const COUNT: u64 = 30_000;
    let log = EventLog::new();
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let mut events = log.subscribe(EventStart::Oldest, EventFilter::default(), Waker::noop().clone());
            thread::spawn(move || {
                let mut seen = 0;
                while let Some(item) = events.next(None) {
                    match item {
                        EventItem::Event(event) => {
                            assert_eq!(event.subject.unwrap().handle.0, seen);
                            seen += 1;
                        }
                        EventItem::Gap { lost, .. } => seen += lost,
                    }
                }
                seen
            })
        })
        .collect();
    (0..COUNT).for_each(|n| log.push(about(n), EventKind::OutputTruncated));
    log.close();
    assert!(readers.into_iter().all(|reader| reader.join().unwrap() == COUNT));
}

#[test]
fn the_shutdown_wakes_a_subscription_that_pauses() {
    let log = EventLog::new();
    let (mut all, wakes) = subscribe(&log, EventFilter::default());
    let (one, wakes_of_one) = subscribe(&log, only(1));
    log.push(about(1), EventKind::OutputTruncated);
    assert!(all.try_next().is_some());
    assert_eq!((wakes.take(), wakes_of_one.take(), all.is_urgent(), one.is_urgent()), (0, 0, false, false));
    log.push(None, EventKind::DaemonShutdown);
    assert_eq!((wakes.take(), wakes_of_one.take(), all.is_urgent(), one.is_urgent()), (1, 1, true, true));
}

#[test]
fn a_batch_refers_to_few_events_or_to_short_texts() {
    let batch = |bytes: usize| {
        let log = EventLog::new();
        let (mut events, _) = subscribe(&log, EventFilter::default());
        for _ in 0..100 {
            let name = Some(Arc::from("n".repeat(bytes)));
            log.push(
                Some(EventSubject { name, ..EventSubject::new(UnitId(1), None, None) }),
                EventKind::OutputTruncated,
            );
        }
        let mut count = 0;
        assert!(events.read_batch(true, |read| count += u32::from(matches!(read, Read::Event(_)))));
        count
    };
    assert_eq!([0, 100, 1 << 12, 1 << 13, 40 << 10, 900 << 10].map(batch), [64, 64, 16, 8, 2, 1]);
}

#[test]
fn the_close_wakes_a_subscription_that_waits() {
    let log = EventLog::new();
    let (mut events, wakes) = subscribe(&log, only(1));
    assert_eq!((events.try_next(), events.has_ended()), (None, false));
    log.close();
    assert_eq!((wakes.take(), events.try_next(), events.has_ended()), (1, None, true));
}
