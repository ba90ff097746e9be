//! `examples/routes.rs` serves its own route and the process API on one port.

// The whole crate is a test, so it may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use tl_supervisor::http::server::{Options, Server};
use tl_supervisor::http::{Api, ApiOptions, Auth};
use tl_supervisor::{Supervisor, UserSpec};

#[path = "../examples/routes.rs"]
#[allow(dead_code, unreachable_pub)]
mod example;

/// Sends a request with this first line and returns the status and the body of the response.
fn ask(server: SocketAddr, request: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server).unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn a_program_serves_its_own_route_beside_the_process_api() {
    let logs = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::builder(logs.path()).default_user(UserSpec::current()).start().unwrap();
    let api = Api::new(supervisor.handle(), ApiOptions::new(Auth::Token(b"secret".to_vec())));
    let address = "127.0.0.1:0".parse().unwrap();
    let server = Server::bind(address, example::Routes { api }, Options::new()).unwrap();
    let ask = |request: &str, headers: &str| ask(server.local_addr(), request, headers);

    assert_eq!(ask("GET /hello?name=%22you%22", ""), (200, r#"{"hello":"\"you\""}"#.to_owned()));
    assert_eq!(ask("GET /hello?name=", "").0, 400);
    assert_eq!(ask("POST /hello", "").0, 405);
    assert_eq!(ask("GET /api/v1/health", ""), (200, r#"{"healthy":true}"#.to_owned()));
    assert_eq!(ask("GET /api/v1/processes", "").0, 401);
    let processes = ask("GET /api/v1/processes", "Authorization: Bearer secret\r\n");
    assert_eq!(processes, (200, r#"{"processes":[]}"#.to_owned()));
    assert_eq!(ask("GET /other", "Authorization: Bearer secret\r\n").0, 404);
}
