//! `POST /processes/run`: complete runs, runs that time out, and runs whose client goes away.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::processes::{Need, body, some_plan};
use crate::client::Client;
use crate::harness::response::EventStream;
use crate::harness::{Random, reset};
use crate::lines::{LONGEST_WRITE, part_of_filler};
use crate::model::{End, Process};
use crate::verify::{Expected, Tails, line_of};
use crate::worker::{Plan, Progress, Then};

const PLAIN: &str = "starts_total{kind=\"plain\"}";

fn open(client: &mut Client, tag: &str, body: &Value) -> EventStream {
    client.current = Some(tag.to_owned());
    client.note(format_args!("{tag} runs: {}", body.to_string().chars().take(400).collect::<String>()));
    client.shared.faults.starts.fetch_add(1, Ordering::SeqCst);
    client.shared.daemon.open_run(body)
}

/// The frames of a run after the first one: lines, lost bytes, the number of gaps, and the last one.
fn read(stream: &mut EventStream) -> ([Vec<String>; 2], u64, u64, Value) {
    let (mut lines, mut lost, mut gaps) = ([Vec::new(), Vec::new()], 0, 0);
    loop {
        let frame = stream.next_frame().expect("a last frame");
        if frame.event == "gap" {
            lost += frame.data["lost_bytes"].as_u64().expect("a number of bytes");
            gaps += 1;
        } else if frame.data.get("line").is_some() {
            lines[usize::from(frame.data["stream"] == "stderr")].push(line_of(&frame.data));
        } else {
            assert!(stream.next_frame().is_none(), "a frame after the last one");
            return (lines, lost, gaps, frame.data);
        }
    }
}

/// Compares what a run has shown with what it must have written.
fn check(
    client: &Client,
    tag: &str,
    plan: &Plan,
    input: &[u8],
    started: Instant,
    stream: &mut EventStream,
    is_complete: bool,
) -> Value {
    let (lines, lost, gaps, last) = read(stream);
    let runs = Progress::of(&client.shared.progress, tag);
    let tails = if matches!(plan.then, Then::Echo(_)) { Tails::Echo(input, true) } else { Tails::None };
    if gaps > 0 {
        assert!(client.shared.faults.disk_was_full_since(started), "output of the run {tag} was dropped");
        client.shared.tally.loss("output missing, and said so");
    }
    let expected = Expected { tag, plan, runs: &runs, tails, is_complete, gaps };
    let bytes: u64 = [0, 1]
        .map(|view| expected.check(view, &lines[view]).unwrap_or_else(|error| panic!("the run {tag}: {error}")))
        .iter()
        .sum();
    let written: u64 = runs.iter().map(|run| run.bytes[0] + run.bytes[1]).sum();
    assert!(bytes + lost >= written, "{bytes} bytes and {lost} lost ones of {written}");
    client.shared.tally.checked(bytes);
    last
}

/// Counts what a run has written, and removes its directory.
fn forget(client: &mut Client, tag: &str, may_be_cut: bool) {
    client.shared.tally.count_output(&Progress::of(&client.shared.progress, tag), may_be_cut);
    let _ = std::fs::remove_dir_all(client.shared.progress.join(tag));
}

/// A run to its end, some with input.
pub fn run(client: &mut Client, random: &mut Random) {
    let tag = client.next_tag();
    let is_echo = random.below(3) == 0;
    let plan = Plan { child: 0, ..some_plan(random, if is_echo { Need::Echo } else { Need::Finite }) };
    let mut body = body(client, &tag, &plan);
    let mut input = Vec::new();
    if is_echo {
        for _ in 0..random.below(200) {
            input.extend(part_of_filler(random, random.0 as usize % 300).as_bytes());
            input.push(b'\n');
        }
        body["stdin"] = json!(String::from_utf8_lossy(&input));
    }
    let started = Instant::now();
    let mut stream = open(client, &tag, &body);
    let first = stream.next_frame().expect("a first frame").data;
    assert!(first["pid"].is_u64() && first["handle"].is_u64(), "{first}");
    client.shared.tally.count(PLAIN);
    let last = check(client, &tag, &plan, &input, started, &mut stream, true);
    let end = match plan.then {
        Then::Echo(code) => End::Exited(code),
        _ => Process::natural_end(&plan).expect("it ends"),
    };
    assert_eq!((End::of(&last), last["reason"].as_str()), (Some(end), Some(end.reason())), "{last}");
    client.shared.tally.count(&format!("ends_total{{reason=\"{}\"}}", end.reason()));
    client.wait_until_gone(&tag);
    forget(client, &tag, false);
}

/// A run that is killed with its whole tree when its time is over.
pub fn run_out_of_time(client: &mut Client, random: &mut Random) {
    let tag = client.next_tag();
    let plan = Plan { child: random.below(3) as u8, ..some_plan(random, Need::Hold) };
    let mut body = body(client, &tag, &plan);
    let timeout = 0.05 + random.below(400) as f64 / 1e3;
    body["timeout"] = json!(timeout);
    let started = Instant::now();
    let mut stream = open(client, &tag, &body);
    client.shared.tally.count(PLAIN);
    stream.next_frame().expect("a first frame");
    let last = check(client, &tag, &plan, &[], started, &mut stream, false);
    assert_eq!((End::of(&last), &last["reason"]), (Some(End::Signaled(9)), &json!("timed_out")), "{last}");
    assert!(started.elapsed() >= Duration::from_secs_f64(timeout), "killed too early");
    client.shared.tally.count("ends_total{reason=\"timed_out\"}");
    client.wait_until_gone(&tag);
    forget(client, &tag, true);
}

/// A client that goes away: before the end of its request, right after it, or while it reads.
pub fn cut_run(client: &mut Client, random: &mut Random) {
    let tag = client.next_tag();
    let plan = Plan { child: random.below(3) as u8, ..some_plan(random, Need::Hold) };
    let body = body(client, &tag, &plan);
    client.shared.tally.fault("run reset");
    let signaled = "ends_total{reason=\"signaled\"}";
    match random.below(3) {
        0 => {
            client.note(format_args!("{tag}: a part of the request"));
            let text = body.to_string();
            let head = client.shared.daemon.request_head(
                "POST",
                "/processes/run",
                &format!("Content-Length: {}\r\n", text.len()),
            );
            let part = random.below(text.len() as u64) as usize;
            client.send_cut(&[head.as_bytes(), &text.as_bytes()[..part]].concat());
            assert!(Progress::of(&client.shared.progress, &tag).is_empty(), "half a request has started a process");
        }
        1 => {
            client.note(format_args!("{tag}: a request whose client does not wait: {body}"));
            let text = body.to_string();
            let head = client.shared.daemon.request_head(
                "POST",
                "/processes/run",
                &format!("Content-Length: {}\r\n", text.len()),
            );
            client.shared.faults.starts.fetch_add(1, Ordering::SeqCst);
            client.send_cut(format!("{head}{text}").as_bytes());
            client.shared.tally.count_unsure(PLAIN);
            client.shared.tally.count_unsure(signaled);
            // The daemon may read the request later: the directory of the process stays.
            count_unsure_output(client, plan.lines * LONGEST_WRITE);
            return client.wait_until_gone(&tag);
        }
        _ => {
            let mut stream = open(client, &tag, &body);
            stream.next_frame().expect("a first frame");
            let lines = random.below(plan.lines.min(30) + 1);
            let read = (0..lines).take_while(|_| stream.next_frame().is_some()).count();
            client.note(format_args!("{tag}: reset after {read} lines"));
            reset(stream.into_reader().into_inner().into_socket());
            client.shared.tally.count(PLAIN);
            client.shared.tally.count(signaled);
        }
    }
    client.wait_until_gone(&tag); // What it had written when it was killed may not have been read any more.
    let runs = Progress::of(&client.shared.progress, &tag);
    let written: u64 = runs.iter().map(|run| run.bytes[0] + run.bytes[1]).sum();
    let _ = std::fs::remove_dir_all(client.shared.progress.join(&tag));
    count_unsure_output(client, written + LONGEST_WRITE);
}

fn count_unsure_output(client: &Client, bytes: u64) {
    for stream in ["stdout", "stderr"] {
        client.shared.tally.count_many(&format!("output_bytes_total{{stream=\"{stream}\"}}"), 0, bytes);
    }
}
