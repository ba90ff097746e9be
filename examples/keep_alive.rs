//! Keeps a service alive and serves the API beside it: `cargo run --example keep_alive`, then ask it with
//! `curl http://127.0.0.1:9502/api/v1/processes/ticker`. Ctrl-C ends it.

use std::error::Error;
use std::time::Duration;

use tl_os::signal_thread::SignalThread;
use tl_supervisor::http::{Auth, Options, Server};
use tl_supervisor::{ManagedSpec, Policy, ProcessSpec, Supervisor, UserSpec};

fn main() -> Result<(), Box<dyn Error>> {
    let logs = std::env::temp_dir().join(format!("keep-alive.{}", std::process::id()));
    let myself = UserSpec::Uid { uid: nix::unistd::getuid().as_raw(), gid: Some(nix::unistd::getgid().as_raw()) };
    let supervisor = Supervisor::builder(&logs).default_user(myself).start()?;
    let handle = supervisor.handle();

    let managed = ManagedSpec { name: Some("ticker".to_owned()), ..ManagedSpec::new(Policy::Always) };
    let command = "echo started; sleep 3; echo crashing; exit 1";
    handle.start(ProcessSpec::command("sh").args(["-c", command]).managed(managed).build()?)?;

    // Without a token it must not listen on anything but loopback.
    let options = Options { auth: Auth::Anybody, ..Options::default() };
    let server = Server::bind("127.0.0.1:9502".parse()?, handle.clone(), options)?;
    println!("listening on {}", server.local_addr());

    let (tell, told) = crossbeam_channel::bounded(1);
    let notice = move |_| {
        let _ = tell.try_send(());
    };
    let _signals = SignalThread::start("signals", &[libc::SIGINT, libc::SIGTERM], notice, || {})?;
    told.recv()?;
    handle.shutdown(Duration::from_secs(5))?;
    server.shutdown();
    drop(supervisor);
    std::fs::remove_dir_all(logs)?;
    Ok(())
}
