//! The daemon's own log, on stderr: one line for each record, as text or as JSON.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use env_logger::{Builder, Target};
use log::LevelFilter;
use tl_os::poll::{self, Events};

use crate::config::LogFormat;

/// Maximum length of a line in bytes: as much as a pipe that is ready for writing takes at once (PIPE_BUF, pipe(7)).
const MAX_LINE: usize = 4096;

/// Writes to stderr without blocking. Stderr can be a pipe that is not read, or a stopped console: a line that it does
/// not take at once is dropped and counted. It is not set to O_NONBLOCK, because the main process shares it.
struct Stderr {
    /// If stderr is a terminal, that terminal opened again with O_NONBLOCK. Unlike a pipe, a terminal can take the
    /// beginning of a line and block on the rest.
    terminal: Option<File>,
    /// Number of lines dropped since the last one that was written.
    dropped: u64,
}

impl Stderr {
    fn new() -> Stderr {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let terminal = io::stderr().is_terminal().then(|| options.open("/proc/self/fd/2").ok()).flatten();
        Stderr { terminal, dropped: 0 }
    }

    fn is_ready(&self) -> bool {
        let stderr = io::stderr();
        let ready = poll::wait([(stderr.as_fd(), Events::WRITE)], Some(Instant::now()));
        ready.is_ok_and(|[events]| events.any(Events::WRITE))
    }
}

impl Write for Stderr {
    /// Writes or drops one record. Never returns an error: it could not be reported.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        if !self.is_ready() {
            self.dropped += 1;
            return Ok(record.len());
        }
        let mut out = Vec::new();
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            out = format!("tl-init: {dropped} lines of this log were dropped\n").into_bytes();
        }
        out.extend_from_slice(record);
        if out.len() > MAX_LINE {
            out.truncate(MAX_LINE - 1);
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

/// Starts the log, and logs panics too.
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
    // If a logger has been started before, it is kept.
    let _ = builder.try_init();
    // The default hook writes to stderr and can block.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
}
