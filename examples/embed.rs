//! Supervises two services in a program of your own and reacts to their exits. Needs no privilege:
//! `cargo run --example embed`; Ctrl-C ends it.
//!
//! `clock` runs until the end. `flaky` crashes; the supervisor restarts it twice and then gives up, and the program
//! goes on without it. If `clock` ended, the program would end as well.

use std::error::Error;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tl_supervisor::{
    Follower, Handle, Item, ManagedSpec, Policy, ProcessSpec, RunEnd, Supervisor, Target, UserSpec, View,
};

/// What the main thread reacts to.
enum Event {
    /// A service has ended, and the supervisor does not restart it.
    Stopped(&'static str, RunEnd),
    /// SIGINT or SIGTERM.
    Interrupted,
}

/// Runs both services until Ctrl-C.
///
/// # Errors
/// Any error of the supervisor.
pub fn main() -> Result<(), Box<dyn Error>> {
    // Blocked in all threads, so that the one that waits for them gets them.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let logs = std::env::temp_dir().join(format!("embed.{}", std::process::id()));
    let supervisor = Supervisor::builder(&logs).default_user(UserSpec::current()).start()?;
    let handle = supervisor.handle();
    let (events, inbox) = channel();

    let clock = ManagedSpec::new(Policy::Always);
    start(&handle, "clock", "while sleep 0.2; do date; done", clock, events.clone())?;
    let mut flaky = ManagedSpec::new(Policy::OnFailure);
    flaky.restart.max_restarts = Some(2);
    flaky.restart.initial_backoff_ms = 100;
    start(&handle, "flaky", "echo trying; exit 1", flaky, events.clone())?;
    thread::spawn(move || signals.wait().map(|_| events.send(Event::Interrupted)));

    for event in inbox {
        match event {
            Event::Stopped("clock", end) => {
                println!("clock has ended ({}): nothing to do without it", end.reason());
                break;
            }
            Event::Stopped(name, _) => {
                let info = handle.get(&Target::from(name))?;
                let why = info.managed.and_then(|managed| managed.last_error).unwrap_or_default();
                println!("{name} has stopped: {why}");
            }
            Event::Interrupted => break,
        }
    }

    handle.shutdown(Duration::from_secs(5))?;
    println!("everything has ended");
    drop(supervisor);
    std::fs::remove_dir_all(logs)?;
    Ok(())
}

/// Starts `script` as a managed process, and a thread that prints its output and reports its end.
fn start(
    handle: &Handle,
    name: &'static str,
    script: &str,
    managed: ManagedSpec,
    events: Sender<Event>,
) -> Result<(), Box<dyn Error>> {
    let spec = ProcessSpec::command("sh").args(["-c", script]).managed(managed.named(name)).build()?;
    let info = handle.start(spec)?;
    let mut output = handle.follow(&Target::Unit(info.handle), View::Combined)?;
    thread::spawn(move || print(name, &mut output).map(|end| end.map(|end| events.send(Event::Stopped(name, end)))));
    Ok(())
}

/// Prints the output of a service, over all of its restarts, until it has ended.
fn print(name: &str, output: &mut Follower) -> std::io::Result<Option<RunEnd>> {
    while let Some(item) = output.next(None)? {
        match item {
            Item::Line(line, _) => println!("{name}: {}", line.text),
            Item::End(end, _) => return Ok(Some(end)),
            _ => {}
        }
    }
    Ok(None)
}
