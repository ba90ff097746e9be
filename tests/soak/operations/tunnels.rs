//! Tunnels to a service that echoes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use tungstenite::{Error, Message};

use crate::client::Client;
use crate::harness::{Random, reset};
use crate::lines::bytes;

/// The service: it echoes everything, and says how much that was once its client has sent everything.
pub fn serve(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) if stream.write_all(&buffer[..got]).is_ok() => count += got,
            _ => return,
        }
    }
    let _ = stream.write_all(format!("echoed {count}").as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
}

pub fn tunnel(client: &mut Client, random: &mut Random) {
    if random.below(10) == 0 {
        let (port, _occupied) = crate::harness::reserve_closed_port();
        let bearer = format!("Bearer {}", client.shared.daemon.token);
        let opened = crate::harness::websocket::try_open(
            &client.shared.daemon,
            &format!("/tunnels/tcp?port={port}"),
            &[("Authorization", &bearer)],
        );
        assert_eq!(opened.err(), Some(502), "nothing listens there");
        return;
    }
    let mut socket = client.shared.daemon.tunnel(client.shared.echo_port);
    client.shared.tally.count("tunnels_opened_total");
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for part in 0..random.below(6) {
        // Less than what the buffers on the way hold, because nothing is read meanwhile.
        let length = if random.below(4) == 0 { random.below(60_000) } else { random.below(500) } as usize;
        let piece = bytes(random.next_u64() ^ part, length);
        socket.send(Message::binary(piece.clone())).expect("send");
        sent.extend(piece);
        while got.len() < sent.len() {
            got.extend(read(socket.read().expect("the echo")));
        }
        assert!(got == sent, "the echo differs");
    }
    client.note(format_args!("tunnel with {} bytes", sent.len()));
    client.shared.tally.checked(sent.len() as u64);
    if random.below(4) == 0 {
        client.shared.tally.fault("tunnel reset");
        return reset(socket.get_ref().try_clone().expect("duplicate the socket"));
    }
    socket.close(None).expect("send the close");
    let mut last = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Close(_)) => {}
            Ok(message) => last.extend(read(message)),
            Err(Error::ConnectionClosed) => break,
            Err(error) => panic!("the end of the tunnel: {error}"),
        }
    }
    assert_eq!(String::from_utf8_lossy(&last), format!("echoed {}", sent.len()), "what the service sends at the end");
}

fn read(message: Message) -> Vec<u8> {
    match message {
        Message::Binary(bytes) => bytes.to_vec(),
        Message::Ping(_) => Vec::new(),
        other => panic!("unexpected message: {other:?}"),
    }
}
