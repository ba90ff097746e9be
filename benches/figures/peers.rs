//! tl-init beside other programs that start and supervise processes: time until their child runs, memory, and time from
//! a crash of the child until it runs again. Programs that are not installed are skipped; `make bench-peers` installs
//! their Debian packages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::beacon::{Programs, Reports};
use crate::bench::{Bench, milliseconds};
use crate::harness::options::program;
use crate::harness::{TIMEOUT, procfs, wait_until};
use crate::report::{Rounds, number};
use crate::usage::memory_of;

/// One program, and how it is told to run the beacon.
struct Peer {
    name: &'static str,
    /// The program that must be installed.
    executable: PathBuf,
    /// Whether it starts its child again after a crash.
    restarts: bool,
    /// Adds the arguments to the command line; the directory is new and empty.
    prepare: fn(&mut Command, &Path, &Programs, &Reports),
}

fn peers_of(tl_init: PathBuf) -> Vec<Peer> {
    let peer = |name, executable: PathBuf, restarts, prepare| Peer { name, executable, restarts, prepare };
    vec![
        peer("tl-init -- COMMAND", tl_init.clone(), false, |command, dir, programs, reports| {
            tl_init_options(command, dir).arg("--").arg(&programs.beacon).arg(&reports.path);
        }),
        peer("tl-init, service", tl_init, true, |command, dir, programs, reports| {
            let restart = json!({"policy": "always", "initial_backoff_ms": 0});
            let args = [&reports.path];
            let service = json!({"name": "beacon", "command": programs.beacon, "args": args, "restart": restart});
            fs::create_dir_all(dir.join("services")).expect("create the directory");
            fs::write(dir.join("services/beacon.json"), service.to_string()).expect("write the service");
            tl_init_options(command, dir).arg("--config-dir").arg(dir);
        }),
        peer("tini -s", "tini".into(), false, |command, _, programs, reports| {
            command.args(["-s", "--"]).arg(&programs.beacon).arg(&reports.path);
        }),
        peer("dumb-init", "dumb-init".into(), false, |command, _, programs, reports| {
            command.arg(&programs.beacon).arg(&reports.path);
        }),
        peer("s6-svscan", "s6-svscan".into(), true, run_script),
        peer("runsvdir", "runsvdir".into(), true, run_script),
        peer("supervisord", "supervisord".into(), true, |command, dir, programs, reports| {
            let (dir, beacon, path) = (dir.display(), programs.beacon.display(), reports.path.display());
            let text = format!(
                "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={dir}/pid\n\
                 [program:beacon]\ncommand={beacon} {path}\nautorestart=true\nstartsecs=0\nstdout_logfile=NONE\n\
                 stderr_logfile=NONE\n"
            );
            let file = format!("{dir}/supervisord.conf");
            fs::write(&file, text).expect("write the configuration");
            command.args(["-c", &file]);
        }),
    ]
}

fn tl_init_options<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    // The machine may have no user `tl-user`.
    let user = nix::unistd::geteuid().to_string();
    command.args(["--listen", "127.0.0.1:0", "--log-level", "error", "--default-user", &user]);
    command.arg("--run-dir").arg(dir.join("run")).arg("--log-dir").arg(dir.join("log"))
}

/// A directory of services with one, whose program `run` is the beacon itself.
fn run_script(command: &mut Command, dir: &Path, programs: &Programs, reports: &Reports) {
    let service = dir.join("services/beacon");
    fs::create_dir_all(&service).expect("create the directory");
    fs::copy(&programs.beacon, service.join("run")).expect("copy the beacon");
    fs::set_permissions(service.join("run"), fs::Permissions::from_mode(0o755)).expect("make it executable");
    command.arg(dir.join("services")).env("BEACON", &reports.path);
}

/// A running supervisor. Dropping it kills it and everything below it.
struct Running(Child);

impl Running {
    /// Starts the supervisor; the time until its child has reported, in milliseconds.
    fn start(peer: &Peer, dir: &Path, programs: &Programs, reports: &Reports) -> (Running, f64) {
        fs::create_dir(dir).expect("create a directory");
        let mut command = Command::new(&peer.executable);
        (peer.prepare)(&mut command, dir, programs, reports);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = None;
        let time = milliseconds(|| {
            child = Some(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", peer.name)));
            reports.wait();
        });
        (Running(child.expect("the supervisor")), time)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// The child that reports: it has the only single-purpose program below the supervisor.
    fn beacon(&self) -> i32 {
        wait_until(TIMEOUT, "the beacon runs", || self.processes().1)
    }

    /// The processes of the supervisor, and the beacon.
    fn processes(&self) -> (Vec<i32>, Option<i32>) {
        let all = std::iter::once(self.pid()).chain(procfs::descendants(self.pid()));
        let is_beacon = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            matches!(name.trim(), "beacon" | "run") && !procfs::is_zombie(*pid)
        };
        let (beacons, own): (Vec<i32>, Vec<i32>) = all.partition(is_beacon);
        (own, beacons.first().copied())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let below = procfs::descendants(self.pid());
        let _ = self.0.kill();
        let _ = self.0.wait();
        for pid in below {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn is_installed(executable: &Path) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    executable.is_absolute() && executable.exists()
        || path.split(':').any(|dir| Path::new(dir).join(executable).exists())
}

/// Start-up, memory and restarts of tl-init and of all peers that are installed.
pub fn peers(bench: &mut Bench) {
    let (installed, missing): (Vec<Peer>, Vec<Peer>) =
        peers_of(program()).into_iter().partition(|peer| is_installed(&peer.executable));
    for peer in missing {
        println!("{}: skipped, it is not installed", peer.name);
    }
    let reports = bench.programs.reports("peers");
    let base = bench.programs.directory("peers-state");
    let mut started: Vec<Rounds> = installed.iter().map(|_| Rounds::default()).collect();
    let mut number_of_start = 0;
    let mut start = |peer: &Peer| {
        number_of_start += 1;
        Running::start(peer, &base.join(number_of_start.to_string()), &bench.programs, &reports)
    };
    for _ in 0..bench.count(bench.options.rounds, 1) {
        for (peer, times) in installed.iter().zip(&mut started) {
            times.push((0..bench.count(2, 1)).map(|_| start(peer).1).collect());
        }
    }
    let rows = installed.iter().zip(&started).map(|(peer, started)| {
        let running = start(peer).0;
        // Restarts: s6 and runit wait for a second after a run that was shorter.
        let life = bench.duration(Duration::from_millis(1_200));
        std::thread::sleep(life);
        let memory = memory_of(&running.processes().0);
        let mut crashes = Rounds::default();
        for _ in 0..if peer.restarts { bench.count(3, 1) } else { 0 } {
            let beacon = running.beacon();
            crashes.push(vec![milliseconds(|| {
                kill(Pid::from_raw(beacon), Signal::SIGKILL).expect("kill the beacon");
                reports.wait();
            })]);
            std::thread::sleep(life);
        }
        let median = |rounds: &Rounds| rounds.median().map_or("-".to_owned(), |spread| number(spread.value));
        vec![
            peer.name.to_owned(),
            median(started),
            number(memory.resident / 1024.0),
            number(memory.proportional / 1024.0),
            median(&crashes),
        ]
    });
    let rows = rows.collect();
    let columns = ["program", "child runs, ms", "VmRSS, MiB", "Pss, MiB", "restart, ms"];
    bench.report.table("Other programs that start and supervise a process (p50)", &columns, rows);
}
