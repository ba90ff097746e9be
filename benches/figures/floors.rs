//! The floors that several figures share: the least work that any implementation has to do.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

use crate::harness::is_root;

/// Runs `/bin/true` by fork, setuid, exec and wait.
pub fn fork_and_wait() {
    assert!(as_user("/bin/true").status().expect("run it").success());
}

/// Runs `/bin/true` by std's spawn (`posix_spawn`) with pipes for both streams, and reads these to their end.
pub fn spawn_with_pipes() {
    let output = Command::new("/bin/true").stdin(Stdio::null()).output().expect("run it");
    assert!(output.status.success() && output.stdout.is_empty());
}

/// Starts a process by fork, setuid and exec; returns once the exec has succeeded. It stays until it is killed.
pub fn fork_and_exec() -> Child {
    as_user("/bin/sleep").arg("9000").spawn().expect("start it")
}

/// Kills a process and reaps it.
pub fn end(mut child: Child) {
    child.kill().and_then(|()| child.wait()).expect("end the process");
}

/// A command as another user, which std runs by fork and exec.
pub fn as_user(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    if is_root() {
        command.uid(1000).gid(1000);
    }
    command
}

/// CPU time, user and system, of this program and of all its children that have been reaped.
pub fn own_cpu_time() -> Duration {
    let usage = |who| {
        let usage = getrusage(who).expect("the CPU time");
        let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
        Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
    };
    usage(UsageWho::RUSAGE_SELF) + usage(UsageWho::RUSAGE_CHILDREN)
}

/// The argument with which this program is an [`EchoService`].
pub const ECHO: &str = "--echo-service";

/// A service that sends everything back, with one thread for each connection: a process in a session of its own, as the
/// daemon is. The kernel schedules each session as a group (sched(7)), and wakes a thread of another group on another CPU
/// more often than one of the same process.
pub struct EchoService {
    process: Child,
    pub addr: SocketAddr,
}

impl EchoService {
    pub fn start() -> EchoService {
        let mut command = Command::new("setsid");
        command.arg(std::env::current_exe().expect("this program")).arg(ECHO);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start it");
        let mut line = String::new();
        let output = process.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("its address");
        EchoService { process, addr: line.trim().parse().expect("its address") }
    }
}

impl Drop for EchoService {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// Is an [`EchoService`] until the standard input ends.
pub fn serve_echo() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    println!("{}", listener.local_addr().expect("local address"));
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok(got @ 1..) = socket.read(&mut buffer) {
                    if socket.write_all(&buffer[..got]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

/// A round trip of one small message each way over the loopback, to an [`EchoService`].
pub fn round_trip(addr: SocketAddr) -> impl FnMut() + Send {
    let mut socket = TcpStream::connect(addr).expect("connect");
    socket.set_nodelay(true).expect("set TCP_NODELAY");
    let mut buffer = [0; 128];
    move || {
        socket.write_all(&buffer).expect("send");
        socket.read_exact(&mut buffer).expect("receive");
    }
}

/// A service that sends `count` bytes to each client, or reads `count` bytes from it and answers with one byte.
pub fn bulk_service(count: usize, sends: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let addr = listener.local_addr().expect("local address");
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut block = vec![0; 256 << 10];
                let mut left = count;
                while left > 0 {
                    let piece = left.min(block.len());
                    let done = if sends { socket.write(&block[..piece]) } else { socket.read(&mut block) };
                    left -= done.expect("transfer");
                }
                if !sends {
                    let _ = socket.write_all(b".");
                }
            });
        }
    });
    addr
}

/// Reads a stream to its end with a large buffer; the number of bytes.
pub fn drain(mut stream: impl Read) -> usize {
    let mut block = vec![0; 256 << 10];
    std::iter::repeat_with(|| read_some(&mut stream, &mut block)).take_while(|got| *got > 0).sum()
}

/// Reads what is there. A socket with a timeout is interrupted when this program is stopped and continued (signal(7)).
pub fn read_some(stream: &mut impl Read, block: &mut [u8]) -> usize {
    loop {
        match stream.read(block) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result.expect("receive"),
        }
    }
}
