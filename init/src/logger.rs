//! The daemon's own log, on stderr: one line a record, as text or as JSON.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use env_logger::{Builder, Target};
use log::LevelFilter;
use tl_os::poll::{self, Events};

use crate::args::LogFormat;

/// The longest piece that a pipe takes whole when it says that it can be written to (PIPE_BUF, pipe(7)).
const PIECE: usize = 4096;

/// stderr, which may be a pipe that nobody reads or a console that was stopped: a line that it does not take at once is
/// dropped and counted, because no thread of ours may ever wait for it. It is not made non-blocking: the main process
/// shares it.
struct Stderr {
    /// A terminal, opened once more. Unlike a pipe it may take the beginning of a line and wait with the rest: this one
    /// does not wait.
    terminal: Option<File>,
    dropped: u64,
}

impl Stderr {
    fn new() -> Stderr {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let terminal = io::stderr().is_terminal().then(|| options.open("/proc/self/fd/2").ok()).flatten();
        Stderr { terminal, dropped: 0 }
    }

    fn takes_more(&self) -> bool {
        let stderr = io::stderr();
        let ready = poll::wait([(stderr.as_fd(), Events::WRITE)], Some(Instant::now()));
        ready.is_ok_and(|[events]| events.any(Events::WRITE))
    }
}

impl Write for Stderr {
    /// Takes one record; never an error, which nobody could be told.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        if !self.takes_more() {
            self.dropped += 1;
            return Ok(record.len());
        }
        let mut out = Vec::new();
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            out = format!("tl-init: {dropped} lines of this log were dropped\n").into_bytes();
        }
        out.extend_from_slice(record);
        if out.len() > PIECE {
            out.truncate(PIECE - 1);
            out.push(b'\n');
        }
        let written = match &mut self.terminal {
            Some(terminal) => terminal.write_all(&out),
            None => io::stderr().write_all(&out),
        };
        if written.is_err() {
            self.dropped = dropped + 1;
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn start(level: LevelFilter, format: LogFormat) {
    let mut builder = Builder::new();
    builder.filter_level(level).target(Target::Pipe(Box::new(Stderr::new())));
    builder.format(move |out, record| {
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        match format {
            LogFormat::Text => {
                let (secs, millis) = (millis / 1000, millis % 1000);
                writeln!(out, "tl-init {secs}.{millis:03} {:<5} {}", record.level(), record.args())
            }
            LogFormat::Json => {
                let line = serde_json::json!({
                    "timestamp": u64::try_from(millis).unwrap_or(u64::MAX),
                    "level": record.level().as_str().to_ascii_lowercase(),
                    "target": record.target(),
                    "message": record.args().to_string(),
                });
                writeln!(out, "{line}")
            }
        }
    });
    // A second start would be a mistake of ours; the first logger goes on.
    let _ = builder.try_init();
    // std's own hook would write to stderr by itself, and wait for it.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
}
