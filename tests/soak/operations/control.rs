//! Signals, restarts and ends of processes.

use serde_json::json;

use super::processes::{self, Need};
use crate::client::{Client, SOON};
use crate::harness::{Random, pid_of, wait_until};
use crate::model::{End, Process};
use crate::worker::{Then, signal_line};

fn send_signal(client: &mut Client, at: usize, signal: i32, scope: Option<&str>) {
    let path = format!("{}/signal", client.processes[at].path());
    let mut body = json!({"signal": signal});
    if let Some(scope) = scope {
        body["scope"] = json!(scope);
    }
    client.note_process(at, format_args!("gets signal {signal}, scope {scope:?}"));
    assert_eq!(client.post(&path, &body).expect(200), json!({"success": true}));
}

/// Sends SIGUSR1 and waits for the line that answers it.
pub fn signal(client: &mut Client, random: &mut Random) {
    let is_right = |process: &Process| process.is_held() && process.handles_signals() && !process.is_stopped;
    let found = client.pick(random, is_right);
    let at = found.unwrap_or_else(|| processes::start(client, random, Need::Hold));
    client.wait_until_ready(at);
    let scope = ["leader", "group", "tree"][random.below(3) as usize];
    // The child of a process does not handle SIGUSR1 and ends by it; nobody counts it.
    send_signal(client, at, 10, Some(scope));
    client.processes[at].signals += 1;
    let line = signal_line(client.processes[at].signals);
    let path = format!("{}/stdout?tail=1", client.processes[at].path());
    let asked = std::time::Instant::now();
    wait_until(SOON, "the process answers SIGUSR1", || {
        let listing = client.get(&path).expect(200);
        if listing["lines"][0] == line.as_str() {
            return Some(());
        }
        // The line itself may be what the full disk has taken.
        let is_lost = listing["truncated"] == true && asked.elapsed() > SOON / 2;
        is_lost.then(|| assert!(client.shared.faults.disk_was_full_since(client.processes[at].started)))
    });
}

pub fn stop_and_continue(client: &mut Client, random: &mut Random) {
    let found = client.pick(random, |process| process.is_held() && process.managed.is_none());
    let at = found.unwrap_or_else(|| processes::start(client, random, Need::Echo));
    let stop = !client.processes[at].is_stopped;
    send_signal(client, at, if stop { 19 } else { 18 }, Some("tree"));
    client.processes[at].is_stopped = stop;
    if stop && random.below(2) == 0 {
        send_signal(client, at, 18, None);
        client.processes[at].is_stopped = false;
    }
}

/// SIGKILL from another program: a plain process has ended by it, a service is restarted.
pub fn kill_from_outside(client: &mut Client, random: &mut Random) {
    if random.below(3) == 0 {
        return kill_early(client, random);
    }
    let found = client.pick(random, Process::is_held);
    let at = found.unwrap_or_else(|| processes::start(client, random, Need::Service));
    if client.processes[at].managed.is_some() {
        client.wait_until_ready(at);
    }
    client.note_process(at, "is killed from outside");
    assert!(client.kill_from_outside(at), "there is no leader of a process that runs");
    client.processes[at].killed();
    if client.processes[at].managed.is_some() {
        wait_for_restart(client, at, End::Signaled(9), "signaled");
    }
}

/// Kills a process right after its start, perhaps after it has ended by itself.
fn kill_early(client: &mut Client, random: &mut Random) {
    let at = processes::start(client, random, Need::Finite);
    let path = client.processes[at].path();
    match random.below(3) {
        0 => {
            client.note_process(at, "is deleted at once");
            client.call("DELETE", &path, None).expect(204);
            client.processes[at].killed();
        }
        1 => {
            client.note_process(at, "gets SIGKILL at once");
            let response = client.post(&format!("{path}/signal"), &json!({"signal": 9}));
            if response.status == 409 {
                return response.expect_error(409, "NOT_RUNNING", "");
            }
            response.expect(200);
            client.processes[at].killed();
        }
        _ => {
            client.note_process(at, "is killed from outside at once");
            if client.kill_from_outside(at) {
                client.processes[at].killed();
            }
        }
    }
}

/// Waits until a service runs again, and checks how its last run has ended.
fn wait_for_restart(client: &mut Client, at: usize, end: End, reason: &str) {
    let (path, runs) = (client.processes[at].path(), client.processes[at].runs);
    let info = wait_until(SOON, "the service is restarted", || {
        let info = client.get(&path).expect(200);
        let count = info["managed"]["restart_count"].as_u64().expect("a count");
        assert!(count < runs + 1, "it was restarted more than once: {info}");
        (count == runs && info["status"] == "running" && info["managed"]["status"] == "running").then_some(info)
    });
    accept_restart(client, at, &info, end, reason);
}

/// Notes the new run of a service.
fn accept_restart(client: &mut Client, at: usize, info: &serde_json::Value, end: End, reason: &str) {
    let process = &mut client.processes[at];
    assert_eq!(info["handle"], process.handle, "{info}");
    assert_eq!(End::of(&info["managed"]["last_exit"]), Some(end), "{info}");
    process.restarted();
    process.ends += 1;
    process.pid = pid_of(info);
    client.shared.faults.starts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    client.processes[at].seen_at_start = client.starts();
    let pid = client.processes[at].pid;
    client.processes[at].check_held(info);
    client.note_process(at, format_args!("runs again: PID {pid}"));
    client.shared.tally.count("starts_total{kind=\"managed\"}");
    client.shared.tally.count(&format!("restarts_total{{reason=\"{reason}\"}}"));
    client.shared.tally.count(&format!("ends_total{{reason=\"{}\"}}", end.reason()));
}

pub fn restart(client: &mut Client, random: &mut Random) {
    let found = client.pick(random, |process| process.is_held() && process.managed.is_some());
    let at = found.unwrap_or_else(|| processes::start(client, random, Need::Service));
    client.wait_until_ready(at);
    client.note_process(at, "is restarted");
    let end = match client.processes[at].plan.then {
        Then::Hold(code) => End::Exited(code),
        _ => End::Signaled(9),
    };
    let path = format!("{}/restart", client.processes[at].path());
    let info = client.call("POST", &path, None).expect(200);
    accept_restart(client, at, &info, end, "requested");
}

/// Ends a process that does not end by itself, in one of several ways.
pub fn end(client: &mut Client, at: usize, random: &mut Random) {
    let path = client.processes[at].path();
    // What it does at SIGTERM is known only then.
    if !client.processes[at].is_stopped {
        client.wait_until_ready(at);
    }
    if client.processes[at].managed.is_some() {
        client.note_process(at, "is deleted");
        client.call("DELETE", &path, None).expect(204);
        return client.processes[at].stopped();
    }
    let is_stubborn = client.processes[at].plan.then == Then::Stubborn;
    match random.below(4) {
        0 if client.processes[at].reads_stdin() => super::stdin::close(client, at),
        0 | 1 if !client.processes[at].is_stopped && !is_stubborn => {
            let scope = ["leader", "group", "tree"][random.below(3) as usize];
            send_signal(client, at, 15, Some(scope));
            client.processes[at].stopped();
        }
        2 => {
            let scope = [None, Some("leader"), Some("group")][random.below(3) as usize];
            send_signal(client, at, 9, scope);
            client.processes[at].killed();
        }
        _ => {
            let tag = client.processes[at].tag.clone();
            client.note_process(at, "is deleted");
            client.call("DELETE", &path, None).expect(204);
            client.processes[at].killed();
            client.wait_until_gone(&tag);
        }
    }
}
