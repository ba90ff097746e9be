//! Terminal sessions: several viewers, typing, sizes, and ends.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::client::{Client, SOON};
use crate::harness::websocket::{Session, SessionEnd, Terminal};
use crate::harness::{Random, reset, wait_until};

/// A session of this client.
pub struct Console {
    pub tag: String,
    session: Session,
    viewers: Vec<Terminal>,
    size: (u16, u16),
    pub pid: u64,
}

/// Sessions of one client at most.
const CONSOLES: usize = 2;

/// What runs in the terminal: it answers each line, and exits when it is told to.
const SCRIPT: &str = "stty -echo; echo ready $0; while read -r line; do case $line in \
    size) stty size;; quit*) exit ${line#quit };; *) echo \"[$line]\";; esac; done";

pub fn use_terminal(client: &mut Client, random: &mut Random) {
    if client.consoles.is_empty() || (client.consoles.len() < CONSOLES && random.below(6) == 0) {
        return open(client, random);
    }
    let at = random.below(client.consoles.len() as u64) as usize;
    match random.below(12) {
        0 => finish(client, at, random),
        1 => attach(client, at),
        2 => detach(client, at, random),
        3..=5 => resize(client, at, random),
        _ => type_in(client, at, random),
    }
}

fn open(client: &mut Client, random: &mut Random) {
    let tag = client.next_tag();
    let size = (1 + random.below(200) as u16, 20 + random.below(300) as u16);
    let body = json!({"command": "sh", "args": ["-c", SCRIPT, tag], "rows": size.0, "cols": size.1});
    client.note(format_args!("terminal {tag} of the size {size:?}"));
    client.shared.faults.starts.fetch_add(1, Ordering::SeqCst);
    let response = client.post("/pty", &body).expect(201);
    let text = |field: &str| response[field].as_str().expect("a text").to_owned();
    let session = Session { id: text("session_id"), token: text("token") };
    client.shared.tally.count("starts_total{kind=\"terminal\"}");
    let info = info(client, &session);
    let pid = info["pid"].as_u64().expect("a pid");
    client.consoles.push(Console { tag, session, viewers: Vec::new(), size, pid });
    attach(client, client.consoles.len() - 1);
}

fn info(client: &mut Client, session: &Session) -> Value {
    client.get(&format!("/pty/{}", session.id)).expect(200)
}

/// One more viewer: it must see everything from the beginning.
fn attach(client: &mut Client, at: usize) {
    let console = &mut client.consoles[at];
    let mut viewer = client.shared.daemon.watch(&console.session);
    viewer.expect(&format!("ready {}\r\n", console.tag));
    console.viewers.push(viewer);
    let (tag, count) = (console.tag.clone(), console.viewers.len());
    // The new viewer is as far as the others once it has seen this.
    let mark = format!("viewer {} {count}", client.operation);
    console.viewers[0].type_in(format!("{mark}\n"));
    console.viewers.iter_mut().for_each(|viewer| drop(viewer.expect(&format!("[{mark}]\r\n"))));
    client.note(format_args!("terminal {tag} has {count} viewers"));
}

fn detach(client: &mut Client, at: usize, random: &mut Random) {
    let console = &mut client.consoles[at];
    if console.viewers.len() < 2 {
        return attach(client, at);
    }
    let viewer = console.viewers.pop().expect("a viewer");
    if random.below(2) == 0 {
        viewer.disconnect();
    } else {
        client.shared.tally.fault("terminal client reset");
        reset(viewer.socket.get_ref().try_clone().expect("duplicate the socket"));
        drop(viewer);
    }
    let (session, count) = (console.session.clone(), console.viewers.len() as u64);
    wait_until(SOON, "the viewer is detached", || {
        (info(client, &session)["client_count"].as_u64() == Some(count)).then_some(())
    });
}

/// Waits until a terminal that has no line to read waits for one: typed text that comes before is shown as it is typed.
fn type_in(client: &mut Client, at: usize, random: &mut Random) {
    let console = &mut client.consoles[at];
    let writer = random.below(console.viewers.len() as u64) as usize;
    for _ in 0..=random.below(5) {
        let line = format!("{:x}", random.next_u64()).repeat(1 + random.below(12) as usize);
        console.viewers[writer].type_in(format!("{line}\n"));
        for viewer in &mut console.viewers {
            let before = viewer.expect(&format!("[{line}]\r\n"));
            assert_eq!(before, "", "{}: unexpected output", console.tag);
        }
        client.shared.tally.checked((line.len() * console.viewers.len()) as u64);
    }
}

fn resize(client: &mut Client, at: usize, random: &mut Random) {
    let size = (1 + random.below(500) as u16, 1 + random.below(1_000) as u16);
    let id = client.consoles[at].session.id.clone();
    let tag = client.consoles[at].tag.clone();
    client.note(format_args!("terminal {tag} gets the size {size:?}"));
    if random.below(2) == 0 {
        client.post(&format!("/pty/{id}/resize"), &json!({"rows": size.0, "cols": size.1})).expect(204);
    } else {
        client.consoles[at].viewers[0].resize(size.0, size.1);
    }
    let console = &mut client.consoles[at];
    console.size = size;
    console.viewers[0].type_in("size\n");
    for viewer in &mut console.viewers {
        let before = viewer.expect(&format!("{} {}\r\n", size.0, size.1));
        assert_eq!(before, "", "{}: unexpected output", console.tag);
    }
    let session = console.session.clone();
    let info = info(client, &session);
    assert_eq!((&info["rows"], &info["cols"]), (&json!(size.0), &json!(size.1)), "{info}");
}

/// Ends a session: every viewer gets its end, and has seen the same output.
pub fn finish(client: &mut Client, at: usize, random: &mut Random) {
    let mut console = client.consoles.remove(at);
    let count = console.viewers.len() as u64;
    let session = info(client, &console.session);
    assert_eq!((&session["is_alive"], &session["client_count"]), (&json!(true), &json!(count)), "{session}");
    let code = random.below(200) as i32;
    let path = format!("/pty/{}", console.session.id);
    let is_quit = random.below(3) > 0;
    client.note(format_args!("terminal {} ends, by itself: {is_quit}", console.tag));
    if is_quit {
        console.viewers[0].type_in(format!("quit {code}\n"));
    } else {
        client.call("DELETE", &path, None).expect(204);
    }
    let ends: Vec<SessionEnd> = console.viewers.iter_mut().map(Terminal::wait_for_end).collect();
    for end in &ends {
        let is_deleted = end.close == Some((1001, "session terminated".to_owned()));
        assert!(if is_quit { *end == SessionEnd::exited(code) } else { is_deleted }, "{}: {ends:?}", console.tag);
    }
    assert!(console.viewers.iter().all(|viewer| viewer.output == console.viewers[0].output), "viewers differ");
    client.shared.tally.count(&format!("ends_total{{reason=\"{}\"}}", if is_quit { "exited" } else { "signaled" }));
    client.wait_until_gone(&console.tag);
    let last = client.get(&path);
    // An ended session is kept for 60 s, and a deleted one not at all.
    if is_quit && last.status != 404 {
        assert_eq!(last.expect(200)["exit_code"], code);
    }
}
