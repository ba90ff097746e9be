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
            let [events] =
                poll::wait([(self.socket.as_fd(), Events::READ.and(Events::WRITE))], Some(Instant::now() + IDLE_TIMEOUT))?;
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
