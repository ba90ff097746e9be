//! Clients that read the response only when they have sent their whole request, and programs that answer before they have
//! read it.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Mutex, mpsc};

use super::client::Client;
use super::{AUTH, Host, TIMEOUT, read_head, tcp_service};

/// Bytes that no buffers of sockets hold.
const LARGE: usize = 24 << 20;

fn host(addr: SocketAddr) -> Host {
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    host
}

fn post(host: &Host) -> Client {
    let mut client = host.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: env\r\n{AUTH}Content-Length: {LARGE}\r\n\r\n"));
    client
}

#[test]
fn a_client_may_read_only_after_its_upload() {
    for head in [format!("Content-Length: {LARGE}\r\n"), String::new(), "Transfer-Encoding: chunked\r\n".to_owned()] {
        let of_server = head.clone();
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        // It reads and writes independently.
        let addr = tcp_service(move |mut stream| {
            let (_, rest) = read_head(&stream);
            let (mut writer, is_chunked) = (stream.try_clone().unwrap(), of_server.contains("chunked"));
            write!(writer, "HTTP/1.1 200 OK\r\n{of_server}\r\n").unwrap();
            let sender = std::thread::spawn(move || {
                let piece = vec![b'r'; 1 << 20];
                for _ in 0..LARGE / piece.len() {
                    if is_chunked {
                        write!(writer, "{:x}\r\n", piece.len()).unwrap();
                    }
                    writer.write_all(&piece).unwrap();
                    writer.write_all(if is_chunked { b"\r\n" } else { b"" }).unwrap();
                }
                writer.write_all(if is_chunked { b"0\r\n\r\n" } else { b"" }).unwrap();
            });
            let mut body = vec![0; LARGE - rest.len()];
            stream.read_exact(&mut body).unwrap();
            tell.lock().unwrap().send(()).unwrap();
            sender.join().unwrap();
        });
        let host = host(addr);
        let mut client = post(&host);
        client.send(vec![b'x'; LARGE]);
        told.recv_timeout(TIMEOUT).unwrap();
        let reply = client.reply();
        assert!(reply.status == 200 && reply.body == vec![b'r'; LARGE], "{head}: {} bytes", reply.body.len());
        assert!(client.is_cut());
    }
}

#[test]
fn a_program_that_answers_first_still_gets_the_whole_request() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        let addr = tcp_service(move |mut stream| {
            let (_, mut rest) = read_head(&stream);
            stream.write_all(answer).unwrap();
            while rest.len() < LARGE {
                let mut piece = vec![0; 1 << 16];
                let read = stream.read(&mut piece).unwrap_or(0);
                if read == 0 {
                    break;
                }
                rest.extend_from_slice(&piece[..read]);
            }
            tell.lock().unwrap().send(rest.len()).unwrap();
        });
        let host = host(addr);
        let mut client = post(&host);
        // The response is complete before the body is sent.
        assert_eq!(client.reply().text(), "ok");
        client.send(vec![b'x'; LARGE]);
        assert_eq!(told.recv_timeout(TIMEOUT), Ok(LARGE));
        assert!(client.is_cut());
    }
}
