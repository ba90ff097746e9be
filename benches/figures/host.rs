//! tl-host for the benchmarks, on an engine of their own, and the two ways to the API of a sandbox.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use serde_json::Value;

use crate::client::Client;
use crate::harness::TIMEOUT;
use crate::harness::response::ResponseStream;
use crate::harness::websocket::UPGRADE;
use crate::host_harness::{Host, IMAGE, init, program};
use crate::podman::podman;

/// A running tl-host. None, with a sentence that says why, where it cannot run.
pub fn start(options: &[&str]) -> Option<Host> {
    if program().is_none() {
        println!("skipped: TL_TEST_HOST names no tl-host; `make bench` builds it and sets the variable");
        return None;
    }
    let init = std::env::var_os("TL_TEST_PROGRAM").map(PathBuf::from).or_else(init)?;
    // It says itself what is missing.
    let podman = podman()?;
    if let Err(error) = podman.try_run(&["run", "--rm", IMAGE, "true"]) {
        println!("skipped: the engine cannot run a container: {error}");
        return None;
    }
    // Its log would stand between the figures.
    Some(Host::start(podman, init, &[options, &["--log-level", "error"]].concat()))
}

/// A way to the API of a sandbox.
pub struct Way {
    addr: SocketAddr,
    host: String,
    token: String,
}

impl Way {
    /// Through the proxy, with the API key.
    pub fn by_proxy(host: &Host, sandbox: &str) -> Way {
        let addr = host.proxy.strip_prefix("http://").expect("a URL").parse().expect("an address");
        Way { addr, host: format!("{sandbox}.localhost"), token: host.key.clone() }
    }

    /// To the tl-init of the sandbox, with its own token.
    pub fn direct(host: &Host, sandbox: &str) -> Way {
        let addr = host.address_of(sandbox);
        Way { addr, host: addr.to_string(), token: host.token_of(sandbox) }
    }

    /// Both ways: through the proxy, then direct.
    pub fn both(host: &Host, sandbox: &str) -> [Way; 2] {
        [Way::by_proxy(host, sandbox), Way::direct(host, sandbox)]
    }

    /// A client on a connection of its own.
    pub fn client(&self) -> Client {
        Client::connect(self.addr, &self.host, &self.token)
    }

    /// Sends the head of a request on a new connection. `path` is below `/api/v1`; `headers` are lines that end in CRLF.
    pub fn send_head(&self, method: &str, path: &str, headers: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.addr).expect("connect");
        socket.set_nodelay(true).expect("set TCP_NODELAY");
        socket.set_read_timeout(Some(TIMEOUT)).expect("set the timeout");
        let (host, token) = (&self.host, &self.token);
        let head = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
        );
        socket.write_all(head.as_bytes()).expect("send");
        socket
    }

    /// The connection after an upgrade to a WebSocket. Some bytes of the server may have been read together with the head
    /// of its response, and are lost.
    pub fn web_socket(&self, path: &str, headers: &str) -> TcpStream {
        let socket = self.send_head("GET", path, &format!("{UPGRADE}{headers}"));
        ResponseStream::read(socket).expect("a response").expect_status(101).into_socket()
    }

    /// Sends a request with a body of JSON; the body of the response.
    pub fn ask(&self, method: &str, path: &str, body: &Value, status: u16) -> Value {
        let text = body.to_string();
        let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", text.len());
        let mut socket = self.send_head(method, path, &headers);
        socket.write_all(text.as_bytes()).expect("send");
        let response = ResponseStream::read(socket).expect("a response").expect_status(status);
        serde_json::from_slice(&response.read_all()).expect("JSON")
    }
}
