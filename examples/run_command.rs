//! Runs one command without HTTP and without being PID 1, and prints what it wrote: `cargo run --example run_command`.

use std::error::Error;

use tl_supervisor::logs::{Item, View};
use tl_supervisor::{ProcessSpec, Supervisor, Target, UserSpec};

fn main() -> Result<(), Box<dyn Error>> {
    let logs = std::env::temp_dir().join(format!("run-command.{}", std::process::id()));
    // Whoever runs this example, so that it needs no privilege.
    let myself = UserSpec::Uid { uid: nix::unistd::getuid().as_raw(), gid: Some(nix::unistd::getgid().as_raw()) };
    let supervisor = Supervisor::builder(&logs).default_user(myself).start()?;
    let handle = supervisor.handle();

    let info = handle.start(ProcessSpec::command("sh").args(["-c", "echo one; echo two >&2; exit 3"]).build()?)?;
    let mut follower = handle.follow(&Target::Unit(info.handle), View::Combined)?;
    while let Some(item) = follower.next(None)? {
        match item {
            Item::Line(line, _) => println!("{:?}: {}", line.stream, line.text),
            Item::Gap { lost_bytes, .. } => println!("{lost_bytes} bytes were dropped"),
            Item::End(end, _) => println!("{}: {:?}", end.reason(), end.exit),
        }
    }
    drop(follower);
    drop(supervisor);
    std::fs::remove_dir_all(logs)?;
    Ok(())
}
