//! A request whose body is written piece by piece, in flat memory. The daemon may answer before the body has ended, mostly
//! with an error: then no more is sent, and its sentence is the error.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use tl_os::poll::{self, Events};
use tl_os::tcp;

use super::error::Error;
use super::http::{Client, IDLE_TIMEOUT, Request, Response};

/// Bytes that are sent at once.
const PIECE: usize = 64 << 10;

/// The body of a request that is being sent.
#[derive(Debug)]
pub(crate) struct Upload {
    socket: TcpStream,
    /// The body has chunks; otherwise the head has announced its length.
    is_chunked: bool,
    /// Bytes that were written and not sent.
    pending: Vec<u8>,
    /// The daemon takes no more: it has answered, or the connection is broken.
    is_over: bool,
    /// Nothing could be sent for [`IDLE_TIMEOUT`].
    is_stalled: bool,
}

impl Client {
    /// Sends a PUT whose body `produce` writes, and returns the response. Without a length, the body is sent in chunks; with
    /// one, `produce` must write so many bytes or fail. If it fails, the daemon sees a body that is cut.
    ///
    /// # Errors
    /// The sentence of the API; else that of `produce`; else one about the connection.
    pub(crate) fn upload(
        &self,
        path: &str,
        length: Option<u64>,
        produce: impl FnOnce(&mut Upload) -> Result<(), Error>,
    ) -> Result<Response, Error> {
        let socket = self.connect()?;
        let begun = Upload::begin(self, socket, path, length);
        let mut upload = begun.map_err(|error| self.broken(&error))?;
        let produced = produce(&mut upload);
        if !upload.is_over {
            produced?;
            // A failure is the end of the connection; what the daemon has sent before counts.
            let _ = upload.finish();
        }
        if upload.is_stalled {
            return Err(self.broken(&ErrorKind::WouldBlock.into()));
        }
        let response = upload.response().map_err(|error| self.broken(&error))?;
        self.accept(path, response)
    }
}

impl Upload {
    fn begin(client: &Client, socket: TcpStream, path: &str, length: Option<u64>) -> io::Result<Upload> {
        let request = Request { method: "PUT", path, ..Request::default() };
        let pending = match length {
            Some(length) => client.head(&request, format_args!("Content-Length: {length}")),
            None => client.head(&request, format_args!("Transfer-Encoding: chunked")),
        };
        socket.set_nonblocking(true)?;
        let mut upload = Upload { socket, is_chunked: false, pending, is_over: false, is_stalled: false };
        // The daemon can refuse the request before it reads the body.
        let _ = upload.send_pending();
        upload.is_chunked = length.is_none();
        Ok(upload)
    }

    /// Waits until the source can be read, for any time. Returns false if the daemon takes no more.
    ///
    /// # Errors
    /// What `poll(2)` says.
    pub(crate) fn wait_for(&mut self, source: BorrowedFd<'_>) -> io::Result<bool> {
        if self.is_over {
            return Ok(false);
        }
        let [answered, _] = poll::wait([(self.socket.as_fd(), Events::READ), (source, Events::READ)], None)?;
        self.is_over = answered != Events::NONE;
        Ok(!self.is_over)
    }

    /// Sends what was written so far.
    fn send_pending(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let sent = match self.is_chunked {
            true => self
                .send(format!("{:x}\r\n", pending.len()).as_bytes())
                .and_then(|()| self.send(&pending))
                .and_then(|()| self.send(b"\r\n")),
            false => self.send(&pending),
        };
        self.pending = pending;
        self.pending.clear();
        sent
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let [events] = poll::wait(
                [(self.socket.as_fd(), Events::READ.and(Events::WRITE))],
                Some(Instant::now() + IDLE_TIMEOUT),
            )?;
            if events == Events::NONE || events.any(Events::READ.and(Events::GONE)) {
                self.is_over = true;
                self.is_stalled = events == Events::NONE;
                return Err(ErrorKind::ConnectionAborted.into());
            }
            match self.socket.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => {
                    self.is_over = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Sends the rest, and the end of the body.
    fn finish(&mut self) -> io::Result<()> {
        self.send_pending()?;
        if self.is_chunked { self.send(b"0\r\n\r\n") } else { Ok(()) }
    }

    /// Reads the head of the response, which may take any time: the daemon flushes the content to the disk before.
    fn response(self) -> io::Result<Response> {
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(None)?;
        tcp::keep_alive(&self.socket)?;
        Response::read(self.socket)
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_over {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let room = PIECE.saturating_sub(self.pending.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.pending.extend_from_slice(taken);
        if self.pending.len() >= PIECE {
            self.send_pending()?;
        }
        Ok(taken.len())
    }

    /// Does nothing: the end of the body is sent with the last piece.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread::JoinHandle;

    use super::super::settings::{Settings, Url};
    use super::*;

    /// A service for one connection, and a client of it. The service returns what it has received.
    fn service(serve: impl FnOnce(TcpStream) -> Vec<u8> + Send + 'static) -> (Client, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || serve(listener.accept().unwrap().0));
        let url = Url { address, host: "localhost", prefix: "" };
        (Client::new(Settings { url, token: Some("t"), token_file: None }), thread)
    }

    /// Receives until this text arrives, or until the end.
    fn receive(socket: &mut TcpStream, end: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        while !bytes.ends_with(end) || end.is_empty() {
            match socket.read(&mut piece).unwrap() {
                0 => break,
                count => bytes.extend_from_slice(&piece[..count]),
            }
        }
        bytes
    }

    fn body(mut request: Vec<u8>) -> Vec<u8> {
        let head = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        request.split_off(head + 4)
    }

    fn write_failed(error: io::Error) -> Error {
        Error::local(format_args!("produce: {error}"))
    }

    #[test]
    fn a_body_has_its_length_or_chunks() {
        for (length, right) in [(Some(5), &b"abcde"[..]), (None, b"5\r\nabcde\r\n0\r\n\r\n")] {
            let (client, thread) = service(move |mut socket| {
                let request = receive(&mut socket, right);
                socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
                request
            });
            let produce = |upload: &mut Upload| {
                upload.write_all(b"abc").and_then(|()| upload.write_all(b"de")).map_err(write_failed)
            };
            client.upload("/files?path=x", length, produce).unwrap();
            let request = thread.join().unwrap();
            assert!(
                request.starts_with(b"PUT /api/v1/files?path=x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t")
            );
            assert_eq!(body(request), right);
        }
    }

    #[test]
    fn large_pieces_become_chunks_of_limited_size_and_arrive_unchanged() {
        let content: Vec<u8> = (0..1_000_003_u32).map(|at| (at % 251) as u8).collect();
        let (client, thread) = service(|mut socket| {
            let request = receive(&mut socket, b"\r\n0\r\n\r\n");
            socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            request
        });
        client.upload("/files?path=x", None, |upload| upload.write_all(&content).map_err(write_failed)).unwrap();
        let mut rest = &body(thread.join().unwrap())[..];
        let mut received = Vec::new();
        loop {
            let end = rest.windows(2).position(|window| window == b"\r\n").unwrap();
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            assert!(size <= PIECE);
            received.extend_from_slice(&rest[end + 2..end + 2 + size]);
            rest = &rest[end + 4 + size..];
            if size == 0 {
                break;
            }
        }
        assert!(received == content && rest.is_empty());
    }

    #[test]
    fn an_early_response_ends_the_upload_and_is_its_result() {
        let error = "HTTP/1.1 507 X\r\nContent-Length: 36\r\n\r\n{\"error\":\"no space\",\"code\":\"NO_SPACE\"}";
        let length = error.split_once("\r\n\r\n").unwrap().1.len();
        let error: &'static str = error.replace("36", &length.to_string()).leak();
        for read_first in [false, true] {
            let (client, thread) = service(move |mut socket| {
                if read_first {
                    let _ = socket.read(&mut [0; 300_000]);
                }
                socket.write_all(error.as_bytes()).unwrap();
                receive(&mut socket, b"")
            });
            let endless = |upload: &mut Upload| loop {
                upload.write_all(&[7; 10_000]).map_err(write_failed)?;
            };
            let failed = client.upload("/files?path=x", None, endless).unwrap_err();
            assert!(failed.has_code("NO_SPACE") && failed.to_string() == "no space", "{failed}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_source_that_has_nothing_yet_does_not_hide_an_early_response() {
        let (client, thread) = service(|mut socket| {
            socket.write_all(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n").unwrap();
            receive(&mut socket, b"")
        });
        let (silent, _kept) = std::os::unix::net::UnixStream::pair().unwrap();
        let failed = client.upload("/files?path=x", None, |upload| {
            assert!(!upload.wait_for(silent.as_fd()).map_err(write_failed)?);
            Ok(())
        });
        assert!(failed.unwrap_err().to_string().contains("HTTP status 404"));
        assert!(!thread.join().unwrap().ends_with(b"0\r\n\r\n"));
    }

    #[test]
    fn a_connection_that_ends_early_is_no_success() {
        let (client, thread) = service(|mut socket| {
            let _ = socket.read(&mut [0; 1000]);
            Vec::new()
        });
        let endless = |upload: &mut Upload| loop {
            upload.write_all(&[7; 10_000]).map_err(write_failed)?;
        };
        let failed = client.upload("/files?path=x", None, endless).unwrap_err().to_string();
        assert!(failed.contains("closed the connection early") || failed.contains("is broken"), "{failed}");
        thread.join().unwrap();
    }

    #[test]
    fn a_body_whose_source_fails_is_cut() {
        let (client, thread) = service(|mut socket| receive(&mut socket, b""));
        let failed = client.upload("/files?path=x", None, |upload| {
            upload.write_all(&vec![7; 2 * PIECE]).map_err(write_failed)?;
            File::open("/no such file").map(drop).map_err(write_failed)
        });
        assert!(failed.unwrap_err().to_string().starts_with("produce: No such file"));
        let request = thread.join().unwrap();
        assert!(request.ends_with(b"\x07\r\n"), "no last chunk");
    }
}
