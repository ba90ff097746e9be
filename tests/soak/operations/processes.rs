//! Starting, looking at and ending processes.

use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::{Value, json};

use super::{control, output};
use crate::allowed::PID_MAX;
use crate::client::{Client, SOON, is_leader};
use crate::harness::{Random, Response, pid_of, procfs, wait_until};
use crate::model::{End, Fate, Input, Managed, Process, policy};
use crate::worker::{Plan, Then};

/// What a client needs a process for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It ends by itself.
    Finite,
    Echo,
    /// It handles signals.
    Hold,
    Service,
    Crasher,
}

pub fn start_any(client: &mut Client, random: &mut Random) {
    let need = match random.below(12) {
        0..=4 => Need::Finite,
        5..=6 => Need::Echo,
        7..=8 => Need::Hold,
        9..=10 => Need::Service,
        _ => Need::Crasher,
    };
    if random.below(20) == 0 {
        return refused_start(client, random);
    }
    start(client, random, need);
}

/// A number of lines: mostly few, sometimes thousands.
fn some_lines(random: &mut Random) -> u64 {
    match random.below(20) {
        0 => random.below(4_000),
        1..=4 => random.below(300),
        5..=7 => 0,
        _ => random.below(25),
    }
}

pub fn some_plan(random: &mut Random, need: Need) -> Plan {
    let code = random.below(200) as i32;
    let then = match need {
        Need::Finite if random.below(6) == 0 => Then::Signal([9, 15, 10, 1][random.below(4) as usize]),
        Need::Finite => Then::Exit(code),
        Need::Echo => Then::Echo(code),
        Need::Hold | Need::Service if random.below(8) == 0 => Then::Stubborn,
        Need::Hold | Need::Service => Then::Hold(code),
        Need::Crasher => Then::Exit(1 + code % 100),
    };
    let pause = if random.below(3) == 0 { random.below(8) } else { 0 };
    let child = if random.below(6) == 0 { 1 + random.below(2) as u8 } else { 0 };
    let lines = some_lines(random);
    Plan { lines: if need == Need::Crasher { lines % 200 } else { lines }, pause, child, then }
}

/// The body of a request that starts a process.
pub fn body(client: &Client, tag: &str, plan: &Plan) -> Value {
    let mut args = vec!["worker".to_owned(), client.shared.progress.display().to_string(), tag.to_owned()];
    args.extend(plan.args());
    json!({"command": client.shared.program, "args": args})
}

/// Starts a process, and ends the oldest one first if there are many. Returns its index.
pub fn start(client: &mut Client, random: &mut Random, need: Need) -> usize {
    if client.is_crowded() {
        finish(client, 0, random);
    }
    let plan = some_plan(random, need);
    let managed = match need {
        Need::Service => Some(Managed::Service),
        Need::Crasher => Some(Managed::Crasher { restarts: random.below(4) }),
        _ => None,
    };
    let is_root = random.below(5) == 0;
    let tag = client.next_tag();
    let mut body = body(client, &tag, &plan);
    if let Some(managed) = managed {
        body["name"] = json!(tag);
        body["restart"] = policy(managed);
        // One that handles SIGTERM does so within its grace, on however busy a machine.
        body["stop_grace_ms"] = json!(if plan.then == Then::Stubborn { 200 } else { 20_000 });
    }
    if need == Need::Echo {
        body["stdin_mode"] = json!("pipe");
    }
    if is_root {
        body["user"] = json!("root");
    }
    client.current = Some(tag.clone());
    let started = Instant::now();
    client.shared.faults.starts.fetch_add(1, Ordering::SeqCst);
    let info = client.post("/processes", &body).expect(201);
    let fate = natural_fate(&plan);
    let (handle, pid) = (info["handle"].as_u64().expect("a handle"), pid_of(&info));
    if client.shared.last_pid.swap(pid, Ordering::Relaxed) > pid + PID_MAX / 2 {
        client.shared.tally.fault("PIDs wrapped");
    }
    let process = Process {
        tag,
        handle,
        pid,
        plan,
        managed,
        is_root,
        fate,
        runs: 1,
        ends: 0,
        input: Input::default(),
        signals: 0,
        signals_before: Vec::new(),
        is_stopped: false,
        started,
        seen_at_start: client.starts(),
        follower: None,
        history: Vec::new(),
    };
    client
        .shared
        .tally
        .count(&format!("starts_total{{kind=\"{}\"}}", if managed.is_some() { "managed" } else { "plain" }));
    client.processes.push(process);
    let at = client.processes.len() - 1;
    client.note_process(at, format_args!("started: PID {pid}, handle {handle}, {need:?} {plan:?}"));
    at
}

/// Starts that must fail, and leave nothing.
fn refused_start(client: &mut Client, random: &mut Random) {
    let tag = client.next_tag();
    let (field, value, code) = match random.below(3) {
        0 => ("command", json!("/nowhere/program"), "COMMAND_NOT_FOUND"),
        1 => ("working_dir", json!("/nowhere"), "WORKING_DIR_NOT_FOUND"),
        _ => ("user", json!("nobody-here"), "USER_NOT_FOUND"),
    };
    let mut body = json!({"command": "true", "args": ["x", "y", tag]});
    body[field] = value;
    client.post("/processes", &body).expect_error(400, code, "");
    client.shared.tally.count("start_failures_total{kind=\"plain\"}");
}

/// Whether a response about an ended process is that of another process, or none, as is allowed.
pub fn is_out_of_reach(client: &Client, at: usize, response: &Response) -> bool {
    let process = &client.processes[at];
    if process.is_held() {
        return false;
    }
    if response.status == 404 {
        let allowed = client.may_be_forgotten(at);
        assert!(allowed, "{} is not known any more: {}", process.tag, String::from_utf8_lossy(&response.body));
        client.shared.tally.loss("ended process forgotten");
        return true;
    }
    let handle = (response.status == 200).then(|| response.json()["handle"].as_u64()).flatten();
    let is_other = process.managed.is_none() && handle.is_some_and(|handle| handle > process.handle);
    if is_other {
        client.shared.tally.loss("PID used again");
    }
    is_other
}

/// The ProcessInfo; none if an ended process is out of reach.
pub fn info(client: &mut Client, at: usize) -> Option<Value> {
    let path = client.processes[at].path();
    let response = client.get(&path);
    if is_out_of_reach(client, at, &response) {
        return None;
    }
    let info = response.expect(200);
    client.processes[at].check_identity(&info, &client.shared.program.display().to_string());
    Some(info)
}

pub fn inspect(client: &mut Client, random: &mut Random) {
    let Some(at) = client.pick(random, |process| !matches!(process.managed, Some(Managed::Crasher { .. }))) else {
        return start_any(client, random);
    };
    let Some(info) = info(client, at) else { return };
    client.note_process(at, format_args!("inspected: {}", info["status"]));
    let process = &client.processes[at];
    if process.is_held() {
        process.check_held(&info);
        client.processes[at].seen_at_start = client.starts();
    } else if End::of(&info).is_some() {
        process.check_ended(&info);
    }
}

/// Checks the place of each process of this client in the listing: by handle, in the order of the starts.
pub fn list(client: &mut Client, _: &mut Random) {
    let listing = client.get("/processes").expect(200);
    let listed = listing["processes"].as_array().expect("a list");
    let handles: Vec<u64> = listed.iter().filter_map(|info| info["handle"].as_u64()).collect();
    assert!(handles.is_sorted_by(|one, next| one < next), "not oldest first: {handles:?}");
    for at in 0..client.processes.len() {
        let handle = client.processes[at].handle;
        let Ok(place) = handles.binary_search(&handle) else {
            let tag = &client.processes[at].tag;
            assert!(!client.processes[at].is_held() && client.may_be_forgotten(at), "{tag} is not listed");
            continue;
        };
        let (process, info) = (&client.processes[at], &listed[place]);
        if !matches!(process.managed, Some(Managed::Crasher { .. })) {
            process.check_identity(info, &client.shared.program.display().to_string());
        }
        if process.is_held() {
            process.check_held(info);
            client.processes[at].seen_at_start = client.starts();
        }
    }
    let live = listed.iter().filter(|info| info["status"] == "running");
    let mut pids: Vec<u64> = live.filter_map(|info| info["pid"].as_u64()).collect();
    let count = pids.len();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), count, "two running processes with one PID: {listing}");
}

/// A wait with a timeout, for a process that runs on.
pub fn wait(client: &mut Client, random: &mut Random) {
    let Some(at) = client.pick(random, Process::is_held) else { return start_any(client, random) };
    let path = format!("{}/wait?timeout=0.0{}", client.processes[at].path(), random.below(9));
    let info = client.get(&path).expect(200);
    client.processes[at].check_held(&info);
    client.note_process(at, "waited for in vain");
}

pub fn finish_any(client: &mut Client, random: &mut Random) {
    match client.pick(random, |_| true) {
        Some(at) => finish(client, at, random),
        None => start_any(client, random),
    }
}

/// Ends a process if it does not end by itself, and checks everything that it has done.
pub fn finish(client: &mut Client, at: usize, random: &mut Random) {
    if client.processes[at].is_held() {
        control::end(client, at, random);
    }
    let known = wait_for_end(client, at);
    let progress = client.progress(at);
    let process = &client.processes[at];
    let begun = progress.len() as u64;
    // A run that is killed at once may not have got as far as its first line.
    let is_killed = process.fate != natural_fate(&process.plan);
    assert!(begun <= process.runs, "{begun} runs of {}: {progress:?}", process.runs);
    assert!(is_killed || begun == process.runs, "{begun} runs instead of {}: {progress:?}", process.runs);
    if known {
        output::check_all(client, at, random);
    }
    clean_up(client, at);
}

/// What is known of the end of a run when it begins.
fn natural_fate(plan: &Plan) -> Fate {
    Process::natural_end(plan).map_or(Fate::Held, |end| Fate::Ends(vec![end]))
}

/// Kills what is left of the tree, and forgets the process.
fn clean_up(client: &mut Client, at: usize) {
    let path = client.processes[at].path();
    let tag = client.processes[at].tag.clone();
    if client.processes[at].plan.child > 0 {
        // The PID may belong to another process by now, which must not be killed. The name of a managed one is free.
        let is_mine = info(client, at).is_some();
        client.note_process(at, "deleted after its end");
        if is_mine {
            let response = client.call("DELETE", &path, None);
            assert!(
                response.status == 204 || response.status == 404 && client.may_be_forgotten(at),
                "{}",
                response.status
            );
        } else {
            for pid in client.alive(&tag) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    client.wait_until_gone(&tag);
    let may_be_cut = client.processes[at].fate != natural_fate(&client.processes[at].plan);
    client.shared.tally.count_output(&client.progress(at), may_be_cut);
    client.processes.remove(at);
    let _ = std::fs::remove_dir_all(client.shared.progress.join(&tag));
}

/// Waits until a process has ended, and checks how. False if it is out of reach.
fn wait_for_end(client: &mut Client, at: usize) -> bool {
    client.note_process(at, "waits for the end");
    let path = client.processes[at].path();
    let mut response = client.get(&path);
    if response.status == 200 && response.json()["handle"] == client.processes[at].handle {
        response = client.get(&format!("{path}/wait?timeout=40"));
    }
    if is_out_of_reach(client, at, &response) {
        count_ends_out_of_reach(client, at);
        return false;
    }
    let info = response.expect(200);
    if let Some(Managed::Crasher { restarts }) = client.processes[at].managed {
        for _ in 0..restarts {
            client.processes[at].restarted();
            client.shared.faults.starts.fetch_add(1, Ordering::SeqCst);
            client.shared.tally.count("starts_total{kind=\"managed\"}");
            client.shared.tally.count("restarts_total{reason=\"exited\"}");
            client.shared.tally.count("ends_total{reason=\"exited\"}");
            client.processes[at].ends += 1;
        }
    }
    let process = &client.processes[at];
    process.check_identity(&info, &client.shared.program.display().to_string());
    let end = process.check_ended(&info);
    client.note_process(at, format_args!("has ended: {end:?}"));
    client.shared.tally.count(&format!("ends_total{{reason=\"{}\"}}", end.reason()));
    client.processes[at].ends += 1;
    true
}

/// How many ends of which kind there were cannot be read any more where a kill may have come too late.
fn count_ends_out_of_reach(client: &mut Client, at: usize) {
    let Fate::Ends(ends) = &client.processes[at].fate else { return };
    assert!(client.processes[at].managed.is_none() || client.may_be_forgotten(at), "a name is never used again");
    let mut reasons: Vec<&str> = ends.iter().map(|end| end.reason()).collect();
    reasons.dedup();
    match reasons[..] {
        [reason] => client.shared.tally.count(&format!("ends_total{{reason=\"{reason}\"}}")),
        _ => reasons
            .iter()
            .for_each(|reason| client.shared.tally.count_unsure(&format!("ends_total{{reason=\"{reason}\"}}"))),
    }
    let tag = client.processes[at].tag.clone();
    wait_until(SOON, "the leader is gone", || {
        let lives = |pid: &i32| is_leader(&procfs::command_line(*pid), &tag);
        (!client.alive(&tag).iter().any(lives)).then_some(())
    });
}
