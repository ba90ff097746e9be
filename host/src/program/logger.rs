//! The log, on stderr, in the form of `tl_supervisor::program_log`.

use std::io::Write;

use env_logger::{Builder, Target};
use log::LevelFilter;
use tl_os::thread;
use tl_supervisor::program_log::{LogFormat, ProgramLog};

/// Starts the log, and logs panics too.
pub(crate) fn start(level: LevelFilter, format: LogFormat) {
    let log = ProgramLog { program: "tl-host", format };
    let mut builder = Builder::new();
    // The client of the engine logs each request in detail.
    builder.filter_level(level).filter_module("ureq", LevelFilter::Warn).filter_module("ureq_proto", LevelFilter::Warn);
    builder.target(Target::Pipe(Box::new(log.stderr())));
    builder.format(move |out, record| out.write_all(log.line(record).as_bytes()));
    // If a logger has been started before, it is kept.
    let _ = builder.try_init();
    // The default hook writes to stderr and can block.
    std::panic::set_hook(Box::new(|panic| {
        thread::with_name(|name| log::error!("thread {name} {panic}"));
    }));
}
