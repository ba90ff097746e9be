//! Clients that misbehave: half a head, garbage, resets, requests without a token.

use std::io::{Read, Write};

use crate::client::Client;
use crate::harness::response::ResponseStream;
use crate::harness::{Random, reset};
use crate::lines::bytes;

pub fn misbehave(client: &mut Client, random: &mut Random) {
    let daemon = &client.shared.daemon;
    match random.below(5) {
        0 => {
            client.shared.tally.fault("half a head, then a reset");
            let head = daemon.request_head("GET", "/processes", "");
            let part = random.below(head.len() as u64) as usize;
            client.send_cut(&head.as_bytes()[..part]);
        }
        1 => {
            client.shared.tally.fault("connections reset before a request");
            let sockets: Vec<_> = (0..=random.below(20)).map(|_| daemon.connect()).collect();
            sockets.into_iter().for_each(reset);
        }
        2 => {
            client.shared.tally.fault("random bytes");
            let mut socket = daemon.connect();
            let mut garbage = bytes(random.next_u64(), 1 + random.below(3_000) as usize);
            garbage.extend(b"\r\n\r\n");
            // The daemon answers 400 and closes; it may do so before it has everything.
            let _ = socket.write_all(&garbage);
            let mut got = Vec::new();
            let _ = socket.read_to_end(&mut got);
            assert!(got.is_empty() || got.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&got));
        }
        3 => {
            client.shared.tally.fault("request without a token");
            let request = b"GET /api/v1/processes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            let response = ResponseStream::send(daemon.connect(), request).into_response("GET /processes");
            response.expect_error(401, "UNAUTHORIZED", "");
        }
        _ => {
            client.shared.tally.fault("response reset");
            // The response has begun, or not: nobody knows.
            reset(daemon.send_get("/processes"));
        }
    }
}
