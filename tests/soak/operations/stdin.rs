//! Writing to the stdin of processes that echo it.

use serde_json::Value;

use super::processes::{self, Need};
use crate::client::Client;
use crate::harness::Random;
use crate::lines::part_of_filler;
use crate::model::{End, Fate, Process};
use crate::worker::Then;

fn pick_or_start(client: &mut Client, random: &mut Random) -> usize {
    let is_right = |process: &Process| {
        process.is_held() && process.reads_stdin() && !process.input.is_closed && !process.is_stopped
    };
    client.pick(random, is_right).unwrap_or_else(|| processes::start(client, random, Need::Echo))
}

/// Lines of input, a few or many, of which the last may be unfinished: the next request goes on with it.
fn some_input(random: &mut Random) -> Vec<u8> {
    let mut input = Vec::new();
    for _ in 0..=random.below(12) {
        let length = if random.below(12) == 0 { random.below(40_000) } else { random.below(100) };
        input.extend(part_of_filler(random, length as usize).as_bytes());
        input.push(b'\n');
    }
    if random.below(3) == 0 {
        input.extend(b"unfinished ");
    }
    input
}

pub fn write(client: &mut Client, random: &mut Random) {
    let at = pick_or_start(client, random);
    let input = some_input(random);
    let path = format!("{}/stdin", client.processes[at].path());
    client.note_process(at, format_args!("gets {} bytes of input", input.len()));
    assert_eq!(client.call("POST", &path, Some(&input)).expect(204), Value::Null);
    let process = &mut client.processes[at];
    process.input.sent.extend(input);
    process.input.confirmed = process.input.sent.len();
    if random.below(6) == 0 {
        close(client, at);
    }
}

/// A request that is cut before the end of its body: the process has got a part of it.
pub fn cut_write(client: &mut Client, random: &mut Random) {
    let at = pick_or_start(client, random);
    let input = some_input(random);
    let path = format!("{}/stdin", client.processes[at].path());
    client.note_process(at, format_args!("gets a part of {} bytes of input", input.len()));
    let framing = format!("Content-Length: {}\r\n", input.len() + 100);
    let head = client.shared.daemon.request_head("POST", &path, &framing);
    let part = random.below(input.len() as u64 + 1) as usize;
    client.send_cut(&[head.as_bytes(), &input[..part]].concat());
    client.processes[at].input.sent.extend(&input[..part]);
    // How much of it arrives is not known, so nothing more can be sent.
    close(client, at);
}

/// Closes the stdin: the process exits by itself.
pub fn close(client: &mut Client, at: usize) {
    let path = format!("{}/stdin/close", client.processes[at].path());
    client.note_process(at, "gets the end of its input");
    assert_eq!(client.call("POST", &path, None).expect(204), Value::Null);
    client.processes[at].input.is_closed = true;
    let Then::Echo(code) = client.processes[at].plan.then else { return };
    // A stopped process goes on when it is told to.
    if client.processes[at].is_stopped {
        let path = format!("{}/signal", client.processes[at].path());
        client.post(&path, &serde_json::json!({"signal": 18})).expect(200);
        client.processes[at].is_stopped = false;
    }
    client.processes[at].fate = Fate::Ends(vec![End::Exited(code)]);
}
