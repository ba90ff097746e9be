//! The output thread, with pipes created by the test.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};
use tempfile::TempDir;

use super::*;
use crate::logs::{Item, LogLimits, LogStore, OutputLog, StartAt, View, Writing};
use crate::model::{Exit, RunEnd, UnitId};
use crate::supervisor::fd_budget::Share;

const LONG: Duration = Duration::from_secs(60);
const PAGE: usize = 4096;
const KEY: RunKey = (UnitId(1), 1);

struct Fixture {
    output: Output,
    notices: Receiver<(RunKey, Notice)>,
    log: Arc<OutputLog>,
    share: Share,
    _dir: TempDir,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let log = LogStore::open(dir.path(), LogLimits { per_unit: 1 << 30, total: 1 << 30 }).unwrap().create(UnitId(1));
    let (tell, notices) = unbounded();
    let output = Output::start(move |run, notice| tell.send((run, notice)).unwrap_or_default(), |_| {}).unwrap();
    Fixture { output, notices, log, share: Share::of(1_000, 100), _dir: dir }
}

impl Fixture {
    /// Attaches a run with these pipes.
    fn attach(&self, stdout: OwnedFd, stderr: Option<OwnedFd>) {
        self.attach_as(KEY, &self.log, stdout, stderr);
    }

    fn attach_as(&self, key: RunKey, log: &Arc<OutputLog>, stdout: OwnedFd, stderr: Option<OwnedFd>) {
        let mut taken = self.share.take(4).unwrap();
        let (log, stdout) = (Arc::clone(log), Some(Descriptor::new(stdout, taken.one())));
        let stderr = stderr.map(|fd| Descriptor::new(fd, taken.one()));
        let attach = Attach { log, terminal: None, stdin: None, stdout, stderr, taken };
        self.output.sender().attach(key, attach);
    }

    fn send(&self, message: Message) {
        self.output.sender().send(KEY, message);
    }

    fn drain(&self) {
        self.send(Message::Drain(Arc::clone(&self.log)));
    }

    fn expect(&self, notice: Notice) {
        assert_eq!(self.notices.recv_timeout(LONG).unwrap(), (KEY, notice));
    }

    /// Waits until at most `count` descriptors are reserved.
    fn await_taken(&self, count: usize) {
        let deadline = Instant::now() + LONG;
        while self.share.taken() > count {
            assert!(Instant::now() < deadline, "{} descriptors remain reserved", self.share.taken() - count);
            std::thread::yield_now();
        }
    }

    fn raw(&self, view: View) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.log.raw(view, None).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Waits until the log is as long as `expected`, then compares.
    fn expect_raw(&self, expected: &[u8]) {
        let deadline = Instant::now() + LONG;
        while self.raw(View::Combined).len() < expected.len() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let got = self.raw(View::Combined);
        assert!(got == expected, "{} bytes instead of {}", got.len(), expected.len());
    }
}

/// A pipe: the daemon's end, which is non-blocking, and the child's end.
fn pipe() -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    (ours, theirs)
}

fn packets(pipe: &OwnedFd) {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_DIRECT | OFlag::O_NONBLOCK)).unwrap();
}

fn capacity(pipe: impl AsFd, bytes: i32) {
    fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes)).unwrap();
}

/// Writes packets of these sizes until the pipe is full. Returns what was written.
fn fill(pipe: &OwnedFd, sizes: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut written = Vec::new();
    for (n, size) in sizes.into_iter().enumerate() {
        let packet: Vec<u8> = format!("{n}:").bytes().chain(std::iter::repeat(b'x')).take(size.max(1) - 1).collect();
        let packet = [&packet[..], b"\n"].concat();
        match write(pipe, &packet) {
            Ok(count) => assert_eq!(count, packet.len()),
            Err(Errno::EAGAIN) => break,
            Err(errno) => panic!("{errno}"),
        }
        written.extend(packet);
    }
    written
}

#[test]
fn every_packet_of_a_pipe_is_read_before_its_end() {
    for bytes in [PAGE as i32, 64 << 10, 1 << 20] {
        let fixture = fixture();
        let (ours, theirs) = pipe();
        capacity(&theirs, bytes);
        packets(&theirs);
        let all = fill(&theirs, (1..).map(|n| 1 + n * 37 % PAGE));
        drop(theirs);
        fixture.attach(ours, None);
        fixture.expect_raw(&all);
        let deadline = Instant::now() + LONG;
        // Two descriptors remain reserved: that of the log, and that of the stream without a pipe.
        while fixture.share.taken() > 2 {
            assert!(Instant::now() < deadline, "a pipe without a writer stays open");
            std::thread::yield_now();
        }
        fixture.drain();
        fixture.expect(Notice::Drained);
        while fixture.share.taken() > 0 {
            assert!(Instant::now() < deadline, "descriptors remain reserved after the end of the run");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_packet_after_other_output_in_the_pipe_is_not_truncated() {
    // A read ends with the first packet, so the buffer must hold that packet and the bytes before it.
    for before in [1, 15, 16, 100, 240] {
        let fixture = fixture();
        let (ours, theirs) = pipe();
        capacity(&theirs, 1 << 20);
        let mut all = b"some bytes first\n".to_vec();
        all.extend(vec![b'y'; before * PAGE]);
        assert_eq!(write(&theirs, b"some bytes first\n").unwrap(), 17);
        assert_eq!(write(&theirs, &all[17..]).unwrap(), before * PAGE);
        packets(&theirs);
        all.extend(fill(&theirs, [PAGE; 10]));
        fixture.attach(ours, None);
        fixture.expect_raw(&all);
    }
}

#[test]
fn a_drain_ends_with_the_last_packet_that_was_in_the_pipe() {
    let fixture = fixture();
    let (ours, theirs) = pipe();
    let (errors, their_errors) = pipe();
    capacity(&theirs, 1 << 20);
    packets(&theirs);
    packets(&their_errors);
    let out = fill(&theirs, std::iter::repeat_n(2, 200));
    let err = fill(&their_errors, [PAGE, 1, PAGE]);
    fixture.attach(ours, Some(errors));
    fixture.drain();
    fixture.expect(Notice::Drained);
    assert!(fixture.raw(View::Stdout) == out && fixture.raw(View::Stderr) == err);
    // A background child has both pipes open: its output is still read.
    let later = fill(&theirs, [PAGE, 3, 5]);
    let deadline = Instant::now() + LONG;
    while fixture.raw(View::Stdout) != [&out[..], &later].concat() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn a_drain_loses_no_output_of_a_child_that_keeps_writing() {
    for round in 0..20 {
        let fixture = fixture();
        let (ours, theirs) = pipe();
        fixture.attach(ours, None);
        // Packets and plain bytes of many lengths, so that reads end in every possible way.
        let writer = std::thread::spawn(move || {
            let mut all = Vec::new();
            for n in 0..2000_usize {
                let flags = if n % 7 < 4 { OFlag::O_DIRECT } else { OFlag::empty() };
                fcntl(&theirs, FcntlArg::F_SETFL(flags)).unwrap();
                let mut line = format!("{n}:").into_bytes();
                line.resize(1 + n * 131 % PAGE, b'z');
                line.push(b'\n');
                assert_eq!(write(&theirs, &line).unwrap(), line.len());
                all.extend(line);
            }
            all
        });
        let deadline = Instant::now() + LONG;
        while fixture.raw(View::Combined).len() < 10_000 * round && Instant::now() < deadline {
            std::thread::yield_now();
        }
        fixture.drain();
        fixture.expect(Notice::Drained);
        let all = writer.join().unwrap();
        fixture.expect_raw(&all);
    }
}

/// The thread that writes logs is held up in its report of this run.
const STALLED: RunKey = (UnitId(2), 1);

/// The output thread is held up in its report of this run.
const HELD: RunKey = (UnitId(3), 1);

/// An output thread whose batches are full, because the thread that writes logs waits until the sender is dropped.
struct Stall {
    fixture: Fixture,
    release: crossbeam_channel::Sender<()>,
    hold: Hold,
    flood: std::thread::JoinHandle<()>,
}

/// Holds up the output thread until `resume` is dropped.
struct Hold {
    log: Arc<OutputLog>,
    is_held: Receiver<()>,
    resume: crossbeam_channel::Sender<()>,
}

fn stall() -> Stall {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path(), LogLimits { per_unit: 1 << 30, total: 1 << 30 }).unwrap();
    let (tell, notices) = unbounded();
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let (stalled, has_stalled) = crossbeam_channel::bounded::<()>(1);
    let (held, is_held) = crossbeam_channel::bounded::<()>(1);
    let (resume, resumed) = crossbeam_channel::bounded::<()>(0);
    let notify = move |run, notice| {
        if run == STALLED && std::thread::current().name() == Some("log-writer") {
            stalled.send(()).unwrap_or_default();
            let _ = released.recv();
        } else if run == HELD {
            held.send(()).unwrap_or_default();
            let _ = resumed.recv();
        } else if run == KEY || run == (KEY.0, 2) {
            tell.send((run, notice)).unwrap_or_default();
        }
    };
    let output = Output::start(notify, |_| {}).unwrap();
    let fixture = Fixture { output, notices, log: store.create(KEY.0), share: Share::of(1_000, 100), _dir: dir };
    let other = store.create(STALLED.0);
    let (ours, theirs) = pipe();
    // The drain has to end this line in the log, so it is always the thread that writes logs which reports it.
    assert_eq!(write(&theirs, b"unfinished").unwrap(), 10);
    fixture.attach_as(STALLED, &other, ours, None);
    fixture.output.sender().send(STALLED, Message::Drain(Arc::clone(&other)));
    has_stalled.recv_timeout(LONG).unwrap();
    // Its output is read also after its drain. The thread ends when the pipe has no reader.
    let (at, flooded) = unbounded();
    let flood = std::thread::spawn(move || while write(&theirs, &[b'y'; PAGE]).is_ok_and(|_| at.send(()).is_ok()) {});
    while flooded.recv_timeout(Duration::from_millis(500)).is_ok() {}
    Stall { fixture, release, hold: Hold { log: store.create(HELD.0), is_held, resume }, flood }
}

const END: RunEnd = RunEnd { exit: Exit::Code(3), timed_out: false, ended_at: 0 };

#[test]
fn output_of_a_run_that_is_reported_while_the_disk_stalls_comes_before_the_end_of_its_log_and_before_the_next_run() {
    let Stall { fixture, release, flood, .. } = stall();
    let log = &fixture.log;
    let (ours, theirs) = pipe();
    assert_eq!(write(&theirs, b"result\nunfinished").unwrap(), 17);
    drop(theirs);
    fixture.attach(ours, None);
    fixture.drain();
    fixture.expect(Notice::Drained);
    assert!(!log.finish_at_rest(END), "its output is still in the pipe");
    fixture.send(Message::FinishLog(Writing::new(log), log.epoch(), END));
    // The next run.
    log.revoke_end();
    fixture.send(Message::ReopenLog(Writing::new(log)));
    let next = (KEY.0, 2);
    let (ours, theirs) = pipe();
    assert_eq!(write(&theirs, b"later\n").unwrap(), 6);
    drop(theirs);
    fixture.attach_as(next, log, ours, None);
    fixture.output.sender().send(next, Message::Drain(Arc::clone(log)));
    assert_eq!(fixture.notices.recv_timeout(LONG).unwrap(), (next, Notice::Drained));
    assert!(!log.finish_at_rest(END));
    fixture.output.sender().send(next, Message::FinishLog(Writing::new(log), log.epoch(), END));
    assert!(log.ended().is_none() && fixture.raw(View::Combined).is_empty());
    let mut follower = log.follow(View::Combined, StartAt::Beginning, std::task::Waker::noop().clone());
    drop(release);
    let mut lines = Vec::new();
    while let Some(Item::Line(line, _)) = follower.next(Some(Instant::now() + LONG)).unwrap() {
        lines.push(line.text);
    }
    assert_eq!(lines, ["result", "unfinished", "later"]);
    assert_eq!(log.ended(), Some(END));
    drop(fixture);
    flood.join().unwrap();
}

/// As after a SIGSTOP of the daemon: the thread that writes logs had no time to write either, so it gets a little more.
#[test]
fn a_drain_whose_deadline_is_seen_late_gets_more_time_once() {
    let Stall { fixture, release, hold, flood } = stall();
    let (ours, theirs) = pipe();
    assert_eq!(write(&theirs, b"result\n").unwrap(), 7);
    drop(theirs);
    fixture.attach(ours, None);
    fixture.drain();
    // Without output, the output thread reports the end of this run itself.
    fixture.output.sender().send(HELD, Message::Drain(hold.log));
    hold.is_held.recv_timeout(LONG).unwrap();
    std::thread::sleep(drain::DRAIN_TIMEOUT + 2 * drain::LATE);
    let resumed = Instant::now();
    drop(hold.resume);
    // Reported although the disk still stalls, so the deadline was extended only once.
    fixture.expect(Notice::Drained);
    assert!(resumed.elapsed() >= drain::LATE, "reported at once: after {:?}", resumed.elapsed());
    drop(release);
    fixture.expect_raw(b"result\n");
    drop(fixture);
    flood.join().unwrap();
}

#[test]
fn runs_without_output_hold_no_descriptors_while_the_disk_stalls() {
    let Stall { fixture, release, flood, .. } = stall();
    let before = fixture.share.taken();
    for _ in 0..50 {
        let ((ours, theirs), (errors, their_errors)) = (pipe(), pipe());
        fixture.attach(ours, Some(errors));
        drop((theirs, their_errors));
        fixture.drain();
        fixture.expect(Notice::Drained);
    }
    fixture.await_taken(before);
    drop(release);
    drop(fixture);
    flood.join().unwrap();
}

#[test]
fn a_run_that_closes_its_output_while_it_waits_for_an_earlier_run_is_forgotten() {
    let Stall { fixture, release, flood, .. } = stall();
    let (ours, theirs) = pipe();
    assert_eq!(write(&theirs, b"result\n").unwrap(), 7);
    drop(theirs);
    fixture.attach(ours, None);
    fixture.drain();
    fixture.expect(Notice::Drained);
    let (before, (ours, theirs)) = (fixture.share.taken(), pipe());
    drop(theirs);
    fixture.attach_as((KEY.0, 2), &fixture.log, ours, None);
    // Its pipe is closed.
    fixture.await_taken(before + 3);
    drop(release);
    flood.join().unwrap();
    // Its leader is reaped after that, when nothing is left to drain: no message about it follows.
    fixture.await_taken(0);
}

#[test]
fn the_end_of_a_run_does_not_end_a_line_of_the_next_run() {
    let fixture = fixture();
    let (ours, theirs) = pipe();
    fixture.attach(ours, None);
    let before = fixture.share.taken();
    let (next, (next_ours, next_theirs)) = ((KEY.0, 2), pipe());
    fixture.attach_as(next, &fixture.log, next_ours, None);
    write(&next_theirs, b"one ").unwrap();
    fixture.expect_raw(b"one ");
    // Late, as after a drain that the supervisor has found to be over.
    drop(theirs);
    fixture.await_taken(before);
    write(&next_theirs, b"line\n").unwrap();
    let mut follower = fixture.log.follow(View::Combined, StartAt::Beginning, std::task::Waker::noop().clone());
    match follower.next(Some(Instant::now() + LONG)).unwrap() {
        Some(Item::Line(line, _)) => assert_eq!(line.text, "one line"),
        other => panic!("{other:?}"),
    }
}
