//! Waits of the library for a port of a certain tree: `Handle::wait_port` with `PortQuery::in_tree_of`.

// The whole crate is a test, so it may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs)]

use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use tl_supervisor::{
    Error, Handle, Item, Pipes, PortQuery, ProcessSpec, StdinMode, Supervisor, Target, UnitId, UserSpec, View,
};

const LONG: Option<Duration> = Some(Duration::from_secs(60));

/// Listens in a child of its own session, after a line on its standard input.
const LISTEN: &str = "
import os, socket, sys, time
print('ready', flush=True)
sys.stdin.readline()
if os.fork() == 0:
    os.setsid()
    s = socket.create_server((sys.argv[1], int(sys.argv[2])))
    time.sleep(6000)
time.sleep(6000)
";

/// Starts [`LISTEN`], and returns when it waits for the line.
fn start(handle: &Handle, address: &str, port: u16) -> UnitId {
    let spec = ProcessSpec::command("python3").args(["-c", LISTEN, address, &port.to_string()]);
    let unit =
        handle.start(spec.stdio(Pipes { stdin: StdinMode::Pipe, ..Pipes::default() }).build().unwrap()).unwrap().handle;
    let mut follower = handle.follow(&Target::Unit(unit), View::Stdout).unwrap();
    assert!(matches!(follower.next(None).unwrap(), Some(Item::Line(line, _)) if line.text == "ready"));
    unit
}

#[test]
fn a_wait_for_a_port_of_a_tree_is_met_by_that_tree_only() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start().unwrap();
    let handle = supervisor.handle();
    // The port is taken at 127.0.0.1, and nothing listens on it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let port = taken.local_addr().unwrap().port();
    let (first, second) = (start(&handle, "127.0.0.2", port), start(&handle, "127.0.0.3", port));
    let query = |unit| PortQuery::new(port).unwrap().in_tree_of(unit);
    let go_on = |unit| handle.write_stdin(&Target::Unit(unit), b"\n").unwrap();

    go_on(first);
    let met = handle.wait_port(query(first), LONG).unwrap().expect("it listens");
    assert_eq!((met.port, met.address.to_string(), met.handle), (port, "127.0.0.2".to_owned(), Some(first)));
    assert_eq!(handle.wait_port(query(first), Some(Duration::ZERO)).unwrap(), Some(met), "it is met at once");
    assert_eq!(handle.wait_port(query(second), Some(Duration::from_millis(600))).unwrap(), None);
    let waiting = {
        let (handle, query) = (handle.clone(), query(second));
        thread::spawn(move || handle.wait_port(query, LONG))
    };
    go_on(second);
    let met = waiting.join().unwrap().unwrap().expect("it listens");
    assert_eq!((met.address.to_string(), met.handle), ("127.0.0.3".to_owned(), Some(second)));
    // Nobody answers HTTP there.
    let http = query(second).answering_http("/").unwrap();
    assert_eq!(handle.wait_port(http, Some(Duration::from_millis(300))).unwrap(), None);

    handle.kill(&Target::Unit(first)).unwrap();
    assert_eq!(handle.wait_port(query(first), Some(Duration::from_millis(300))).unwrap(), None);
    let waiting = {
        let (handle, query) = (handle.clone(), query(first));
        thread::spawn(move || handle.wait_port(query, LONG))
    };
    handle.shutdown(Duration::from_secs(10)).unwrap();
    assert_eq!(waiting.join().unwrap(), Err(Error::ShuttingDown));
    assert_eq!(handle.wait_port(query(first), LONG), Err(Error::ShuttingDown));
    drop(listener);
}
