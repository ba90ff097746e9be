//! Tests of the whole proxy: over real sockets, with the real daemon and with servers that misbehave.

mod client;
mod daemon;
mod forwarding;
mod memory;
mod misbehaviour;
mod ports;
mod silence;
mod slow_readers;
mod upgrades;

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tl_supervisor::http::message::Request;
use tl_supervisor::http::server::{Handler, Options, Server};

use super::{Directory, Exposure, Numbers, Proxy, ReachError, Reached};

use client::Client;

/// Deadline for anything that a test waits for; long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The API key of the tests.
const KEY: &str = "tl_key_of_the_tests";

/// The header with the API key.
const AUTH: &str = "Authorization: Bearer tl_key_of_the_tests\r\n";

/// A directory of sandboxes that the test adds.
#[derive(Default)]
struct Sandboxes {
    by_name: Mutex<HashMap<String, Result<Reached, ReachError>>>,
    reached: AtomicUsize,
    /// Ids of those whose address may belong to another one.
    ended: Mutex<HashSet<String>>,
    /// Called once, by the next `reach`.
    on_reach: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Directory for Sandboxes {
    fn reach(&self, id_or_name: &str, _deadline: Instant) -> Result<Reached, ReachError> {
        self.reached.fetch_add(1, SeqCst);
        let by_name = self.by_name.lock().unwrap();
        let name = id_or_name.strip_prefix("id-of-").unwrap_or(id_or_name);
        let found = by_name.get(name).cloned();
        if let Some(resumed) = found.as_ref().and_then(|_| self.on_reach.lock().unwrap().take()) {
            resumed();
        }
        found.unwrap_or_else(|| Err(ReachError::Unknown(id_or_name.to_owned())))
    }

    fn has_address(&self, reached: &Reached) -> bool {
        !self.ended.lock().unwrap().contains(&reached.id)
    }

    fn exposure(&self, id_or_name: &str) -> Option<Exposure> {
        let found = self.by_name.lock().unwrap().get(id_or_name).cloned()?.ok()?;
        let allow_unauthenticated_access = found.allow_unauthenticated_access;
        Some(Exposure { ports: found.exposed_ports, allow_unauthenticated_access })
    }
}

/// A proxy that listens.
struct Host {
    server: Server,
    sandboxes: Arc<Sandboxes>,
    numbers: Arc<Numbers>,
    proxy: Arc<Proxy>,
}

impl Host {
    fn start() -> Host {
        Host::start_with(|_| {})
    }

    /// A proxy with other limits.
    fn start_with(change: impl FnOnce(&mut Proxy)) -> Host {
        let sandboxes: Arc<Sandboxes> = Arc::default();
        let mut proxy = Proxy::start(sandboxes.clone(), KEY.as_bytes().to_vec(), Duration::from_secs(600)).unwrap();
        change(&mut proxy);
        let proxy = Arc::new(proxy);
        let of_server = Arc::clone(&proxy);
        let handler = move |request: &mut Request<'_>| of_server.handle(request);
        let options = Options::new().max_connections(4096).server_name("tl-host");
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), handler, options).unwrap();
        Host { server, sandboxes, numbers: proxy.numbers(), proxy }
    }

    /// Adds a sandbox with the daemon at this address, and exposes these ports.
    fn add(&self, name: &str, daemon: SocketAddr, token: &str, exposed_ports: &[u16]) {
        self.add_reached(
            name,
            Reached {
                id: format!("id-of-{name}"),
                daemon,
                is_direct: true,
                token: token.to_owned(),
                exposed_ports: exposed_ports.to_vec(),
                allow_unauthenticated_access: false,
            },
        );
    }

    fn add_reached(&self, name: &str, reached: Reached) {
        self.sandboxes.by_name.lock().unwrap().insert(name.to_owned(), Ok(reached));
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Reached)) {
        change(self.sandboxes.by_name.lock().unwrap().get_mut(name).unwrap().as_mut().unwrap());
    }

    fn connect(&self) -> Client {
        Client::connect(self.server.local_addr())
    }
}

/// A server of which each connection is served by `serve`, on a thread of its own.
fn tcp_service(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    addr
}

/// Reads up to the end of a head. Returns it, and what was read after it.
fn read_head(mut stream: &TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return (String::from_utf8(bytes).unwrap(), rest);
        }
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "the connection ended within the head: {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..read]);
    }
}

/// A server that answers each connection's first request with these bytes, and closes the connection.
fn canned(answer: &'static [u8]) -> SocketAddr {
    tcp_service(move |mut stream| {
        read_head(&stream);
        stream.write_all(answer).unwrap();
    })
}

/// Calls `condition` until it is true.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
