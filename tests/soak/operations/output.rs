//! Listings and followers of output.

use super::processes::{self, Need};
use crate::client::{Client, SOON};
use crate::harness::response::{EventStream, Frame};
use crate::harness::{Random, reset};
use crate::model::{End, Fate, Process};
use crate::verify::{Expected, Tails, is_finite, line_of};
use crate::worker::{Progress, Then};

const VIEWS: [&str; 2] = ["stdout", "stderr"];

/// Whether the process has ended by itself, after it has written everything.
fn is_complete(process: &Process) -> bool {
    let natural = match process.plan.then {
        Then::Echo(code) if process.input.is_closed => Some(End::Exited(code)),
        _ => Process::natural_end(&process.plan),
    };
    natural.is_some_and(|end| process.fate == Fate::Ends(vec![end]))
}

/// Checks lines of one stream of a process; `has_ended` if they are all that it will ever write.
fn check(
    client: &mut Client,
    at: usize,
    runs: &[Progress],
    view: &[Vec<String>; 2],
    has_ended: bool,
    gaps: u64,
) -> u64 {
    let process = &client.processes[at];
    let input = &process.input;
    let sent = delivered(process, &view[0], has_ended);
    let tails = match process.plan.then {
        Then::Echo(_) => Tails::Echo(&input.sent[..sent], input.is_closed),
        Then::Hold(_) | Then::Stubborn => {
            Tails::Signals(process.signals_before.iter().copied().max().unwrap_or(0).max(process.signals))
        }
        Then::Exit(_) | Then::Signal(_) => Tails::None,
    };
    let expected = Expected {
        tag: &process.tag,
        plan: &process.plan,
        runs,
        tails,
        is_complete: has_ended && is_complete(process),
        gaps,
    };
    let bytes = [0, 1].map(|stream| {
        expected.check(stream, &view[stream]).unwrap_or_else(|error| panic!("output of {}: {error}", process.tag))
    });
    client.shared.tally.checked(bytes[0] + bytes[1]);
    bytes[0] + bytes[1]
}

/// How much of the input the process has got: of a request that was cut, the last line tells.
fn delivered(process: &Process, stdout: &[String], has_ended: bool) -> usize {
    let input = &process.input;
    if input.confirmed == input.sent.len() || !has_ended {
        return input.sent.len();
    }
    let last = stdout.last().and_then(|line| line.strip_prefix("end ")?.split(' ').next()?.parse::<usize>().ok());
    let count = last.unwrap_or(input.sent.len());
    assert!(
        (input.confirmed..=input.sent.len()).contains(&count),
        "{count} bytes of input, {} confirmed",
        input.confirmed
    );
    count
}

/// Whether the daemon says that output is missing; it may say so only if the log disk was full.
fn check_truncated(client: &Client, at: usize, is_truncated: bool) -> bool {
    if is_truncated {
        let process = &client.processes[at];
        assert!(client.shared.faults.disk_was_full_since(process.started), "output of {} was dropped", process.tag);
        client.shared.tally.loss("output missing, and said so");
    }
    is_truncated
}

/// The listing of one stream; none if the process is out of reach.
fn lines(client: &mut Client, at: usize, view: &str, query: &str) -> Option<(Vec<String>, bool)> {
    let path = format!("{}/{view}{query}", client.processes[at].path());
    let response = client.get(&path);
    if response.status == 404 && processes::is_out_of_reach(client, at, &response) {
        return None;
    }
    let listing = response.expect(200);
    let lines: Vec<String> = serde_json::from_value(listing["lines"].clone()).expect("lines");
    assert_eq!(listing["line_count"].as_u64(), Some(lines.len() as u64), "{}", response.request);
    Some((lines, listing["truncated"] == true))
}

/// Whether the path of a process still leads to it. Asked after its output was read.
fn is_reachable(client: &mut Client, at: usize) -> bool {
    processes::info(client, at).is_some()
}

/// The output so far of a process that runs, or all of it.
pub fn listing(client: &mut Client, random: &mut Random) {
    let Some(at) = client.pick(random, Process::is_held) else {
        let at = processes::start(client, random, Need::Finite);
        return processes::finish(client, at, random);
    };
    // What it had written before must be there; what it writes meanwhile may be.
    let before = client.progress(at);
    wait_for_log(client, at, &before);
    let Some((stdout, one)) = lines(client, at, "stdout", "") else { return };
    let Some((stderr, two)) = lines(client, at, "stderr", "") else { return };
    client.note_process(at, format_args!("listed: {} and {} lines", stdout.len(), stderr.len()));
    let truncated = check_truncated(client, at, one || two);
    let mut runs = client.progress(at);
    for run in &mut runs {
        run.bytes = before.iter().find(|old| old.run == run.run).map_or([0; 2], |old| old.bytes);
    }
    check(client, at, &runs, &[stdout, stderr], false, u64::from(truncated));
}

/// Waits until the daemon has read what a process has written: it reads soon, but not before the write returns.
fn wait_for_log(client: &mut Client, at: usize, written: &[Progress]) {
    let total: u64 = written.iter().map(|run| run.bytes[0] + run.bytes[1]).sum();
    let path = client.processes[at].path();
    crate::harness::wait_until(SOON, "the output is in the log", || {
        let mut bytes = 0;
        for view in VIEWS {
            let raw = client.call_with("GET", &format!("{path}/{view}"), "Accept: application/octet-stream\r\n", None);
            bytes += raw.body.len() as u64;
        }
        let is_missing = bytes < total && client.shared.faults.disk_was_full_since(client.processes[at].started);
        let is_truncated = is_missing && client.get(&format!("{path}/stdout?tail=1")).expect(200)["truncated"] == true;
        (bytes >= total || is_truncated).then_some(())
    });
}

/// Reads a follow to its end. With `cuts`, the connection is reset now and then, and the follow is resumed with
/// `Last-Event-ID`. Returns the lines of both streams and the number of bytes that gaps report.
fn read_follow(
    client: &mut Client,
    at: usize,
    mut stream: EventStream,
    random: &mut Random,
    cuts: bool,
) -> ([Vec<String>; 2], u64, u64) {
    let (mut lines, mut lost, mut id) = ([Vec::new(), Vec::new()], 0, String::new());
    let mut gaps = 0;
    let mut left = random.below(40);
    loop {
        if cuts && left == 0 {
            left = 1 + random.below(60);
            client.shared.tally.fault("event stream reset and resumed");
            reset(stream.into_reader().into_inner().into_socket());
            let headers = if id.is_empty() { String::new() } else { format!("Last-Event-ID: {id}\r\n") };
            stream = client.shared.daemon.follow_with(client.processes[at].pid, "output", &headers);
        }
        left = left.saturating_sub(1);
        let Frame { event, id: next, data } = stream.next_frame().expect("a frame before the end of the stream");
        if !next.is_empty() {
            id = next;
        }
        match event.as_str() {
            "eof" => {
                assert!(stream.next_frame().is_none(), "a frame after eof");
                return (lines, lost, gaps);
            }
            "gap" => {
                lost += data["lost_bytes"].as_u64().expect("a number of bytes");
                gaps += 1;
            }
            "output" => {
                let stream = usize::from(data["stream"] == "stderr");
                lines[stream].push(line_of(&data));
            }
            other => panic!("unexpected event {other:?}"),
        }
    }
}

/// Follows the output of a process from its start to its end, with connections that are cut in between.
pub fn follow(client: &mut Client, random: &mut Random) {
    let at = processes::start(client, random, Need::Finite);
    let pid = client.processes[at].pid;
    client.note_process(at, "is followed");
    let stream = client.shared.daemon.follow(pid, "output");
    check_follow(client, at, stream, random, true);
}

/// Opens a follower, which is read when its process has ended.
pub fn leave_follower(client: &mut Client, random: &mut Random) {
    let found = client.pick(random, |process| process.is_held() && process.follower.is_none());
    let at = found.unwrap_or_else(|| processes::start(client, random, Need::Hold));
    let pid = client.processes[at].pid;
    client.note_process(at, "gets a follower");
    client.processes[at].follower = Some(client.shared.daemon.follow(pid, "output"));
}

fn check_follow(client: &mut Client, at: usize, stream: EventStream, random: &mut Random, cuts: bool) {
    let (lines, lost, gaps) = read_follow(client, at, stream, random, cuts);
    check_truncated(client, at, gaps > 0);
    let runs = client.progress(at);
    client
        .note_process(at, format_args!("followed: {} and {} lines, {lost} bytes lost", lines[0].len(), lines[1].len()));
    let bytes = check(client, at, &runs, &lines, true, gaps);
    let written: u64 = runs.iter().map(|run| run.bytes[0] + run.bytes[1]).sum();
    // A last write that was killed may have been logged in part without having been counted.
    assert!(bytes + lost >= written, "{bytes} bytes and {lost} lost ones of {written}: a silent loss");
}

/// Checks all output of a process that has ended: both listings, the raw bytes and the followers.
pub fn check_all(client: &mut Client, at: usize, random: &mut Random) {
    if let Some(follower) = client.processes[at].follower.take() {
        check_follow(client, at, follower, random, false);
    }
    let runs = client.progress(at);
    let Some((stdout, one)) = lines(client, at, "stdout", "") else { return };
    let Some((stderr, two)) = lines(client, at, "stderr", "") else { return };
    let raw = random.below(3) == 0 && stdout.len() < 2_000;
    let path = client.processes[at].path();
    let bytes =
        raw.then(|| client.call_with("GET", &format!("{path}/stdout"), "Accept: application/octet-stream\r\n", None));
    if !is_reachable(client, at) {
        return;
    }
    let truncated = check_truncated(client, at, one || two);
    if let Some(bytes) =
        bytes.filter(|_| !truncated && is_finite(&client.processes[at].plan) && is_complete(&client.processes[at]))
    {
        let text = String::from_utf8_lossy(&bytes.body);
        let same = text.split_terminator('\n').eq(stdout.iter().map(String::as_str));
        assert!(same, "raw stdout of {} differs from its lines", client.processes[at].tag);
    }
    client
        .note_process(at, format_args!("output: {} and {} lines, truncated: {truncated}", stdout.len(), stderr.len()));
    check(client, at, &runs, &[stdout, stderr], true, u64::from(truncated));
}
