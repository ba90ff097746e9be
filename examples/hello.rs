//! Starts a process, follows its output, and prints each line: `cargo run --example hello`.

use std::env;
use tl_supervisor::{Item, ProcessSpec, Supervisor, Target, UserSpec, View};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The directory for the output of processes; it is emptied at each start.
    let logs = env::temp_dir().join("hello-logs");
    let supervisor = Supervisor::builder(logs).default_user(UserSpec::current()).start()?;
    let handle = supervisor.handle();
    let info = handle.start(ProcessSpec::command("sh").args(["-c", "echo hello; exit 3"]).build()?)?;
    let mut follower = handle.follow(&Target::Unit(info.handle), View::Combined)?;
    while let Some(item) = follower.next(None)? {
        match item {
            Item::Line(line, _) => println!("{}", line.text),
            Item::End(end, _) => println!("ended: {}", end.exit.shell_status()),
            _ => {}
        }
    }
    Ok(())
}
