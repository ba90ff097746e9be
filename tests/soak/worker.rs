//! The program that runs in the sandbox: this program itself, called as `soak worker DIRECTORY TAG PLAN…`. It writes
//! lines that the checker can compute, and counts in a file of its own what it has written.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, raise};

use crate::lines::{first_line, hash, is_stdout, line};

/// What a process does after it has written its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It exits with this code.
    Exit(i32),
    /// It sends itself this signal.
    Signal(i32),
    /// It writes each line of its stdin, and exits with this code at the end of that.
    Echo(i32),
    /// It writes a line for each SIGUSR1, and exits with this code at SIGTERM.
    Hold(i32),
    /// The same, but it ignores SIGTERM.
    Stubborn,
}

/// What a process does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of lines on both streams together, without the first line of each.
    pub lines: u64,
    /// Milliseconds of a pause after every 16 lines.
    pub pause: u64,
    /// It has a child that outlives it; 2: in a session of its own.
    pub child: u8,
    pub then: Then,
}

impl Plan {
    /// As arguments of the command line.
    pub fn args(&self) -> [String; 5] {
        let (then, number) = match self.then {
            Then::Exit(code) => ("exit", code),
            Then::Signal(signal) => ("signal", signal),
            Then::Echo(code) => ("echo", code),
            Then::Hold(code) => ("hold", code),
            Then::Stubborn => ("stubborn", 0),
        };
        [self.lines.to_string(), self.pause.to_string(), self.child.to_string(), then.to_owned(), number.to_string()]
    }

    fn parse(args: &[String]) -> Option<Plan> {
        let number = |at: usize| args.get(at)?.parse::<u64>().ok();
        let value = number(4)? as i32;
        let then = match args.get(3)?.as_str() {
            "exit" => Then::Exit(value),
            "signal" => Then::Signal(value),
            "echo" => Then::Echo(value),
            "hold" => Then::Hold(value),
            "stubborn" => Then::Stubborn,
            _ => return None,
        };
        Some(Plan { lines: number(0)?, pause: number(1)?, child: number(2)? as u8, then })
    }
}

/// What a run has written so far, as it counted itself: the file `TAG.RUN` in the directory of the soak.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The INVOCATION_ID of the run.
    pub run: String,
    /// Bytes of stdout and of stderr that `write(2)` has taken.
    pub bytes: [u64; 2],
    /// All numbered lines are written, and signals are handled.
    pub is_ready: bool,
}

impl Progress {
    /// All runs of a process that have begun to write, in their order: a run has ended when the next one begins.
    pub fn of(directory: &Path, tag: &str) -> Vec<Progress> {
        let Ok(entries) = std::fs::read_dir(directory.join(tag)) else { return Vec::new() };
        let mut runs: Vec<(u64, Progress)> =
            entries.flatten().filter_map(|entry| Progress::read(&entry.path())).collect();
        runs.sort_by_key(|(number, _)| *number);
        runs.into_iter().map(|(_, run)| run).collect()
    }

    /// The number of a run, and what it has counted.
    fn read(path: &Path) -> Option<(u64, Progress)> {
        let (run_number, run) = path.file_name()?.to_str()?.split_once('-')?;
        let (run_number, run) = (run_number.parse().ok()?, run.to_owned());
        let mut bytes = std::fs::read(path).ok()?;
        bytes.resize(24, 0);
        let number = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap_or_default());
        Some((run_number, Progress { run, bytes: [number(0), number(1)], is_ready: number(2) != 0 }))
    }
}

/// The streams of the process, and the file that counts.
struct Output {
    streams: [File; 2],
    written: [u64; 2],
    file: File,
}

impl Output {
    fn new(directory: PathBuf, run: &str) -> io::Result<Output> {
        let streams = [io::stdout().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?];
        // The time of the files would not tell two runs apart that begin within one tick of the clock.
        let earlier_runs = std::fs::read_dir(&directory)?.count();
        let file = File::create_new(directory.join(format!("{earlier_runs}-{run}")))?;
        Ok(Output { streams: streams.map(File::from), written: [0; 2], file })
    }

    fn write(&mut self, stream: usize, line: &str) -> io::Result<()> {
        self.streams[stream].write_all(format!("{line}\n").as_bytes())?;
        self.written[stream] += line.len() as u64 + 1;
        self.file.write_all_at(&self.written[stream].to_le_bytes(), stream as u64 * 8)
    }

    fn say_ready(&self) -> io::Result<()> {
        self.file.write_all_at(&1_u64.to_le_bytes(), 16)
    }
}

/// Runs the program with its arguments after `worker`.
pub fn main(args: &[String]) -> ! {
    if args.first().is_some_and(|first| first == "sleep") {
        std::thread::sleep(Duration::from_secs(900));
        exit(0);
    }
    exit(match work(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("worker: {error}");
            250
        }
    })
}

fn work(args: &[String]) -> io::Result<i32> {
    let [directory, tag, plan @ ..] = args else { return Err(io::Error::other("no directory and no tag")) };
    let plan = Plan::parse(plan).ok_or_else(|| io::Error::other("not a plan"))?;
    let signals: SigSet = [Signal::SIGUSR1, Signal::SIGTERM].into_iter().collect();
    let run = std::env::var("INVOCATION_ID").map_err(io::Error::other)?;
    // Before any signal is blocked, which a child inherits.
    if plan.child > 0 {
        start_child(tag, plan.child > 1)?;
    }
    if matches!(plan.then, Then::Hold(_) | Then::Stubborn) {
        signals.thread_block()?;
    }
    let mut output = Output::new(Path::new(directory).join(tag), &run)?;
    output.write(0, &first_line(tag, &run))?;
    output.write(1, &first_line(tag, &run))?;
    for number in 1..=plan.lines {
        output.write(usize::from(!is_stdout(tag, number)), &line(tag, &run, number))?;
        if plan.pause > 0 && number % 16 == 0 {
            std::thread::sleep(Duration::from_millis(plan.pause));
        }
    }
    output.say_ready()?;
    match plan.then {
        Then::Exit(code) => Ok(code),
        Then::Signal(signal) => {
            raise(Signal::try_from(signal)?)?;
            Ok(251)
        }
        Then::Echo(code) => echo(&mut output).map(|()| code),
        Then::Hold(code) => hold(&mut output, &signals, Some(code)),
        Then::Stubborn => hold(&mut output, &signals, None),
    }
}

/// A child that outlives this process, and holds none of its streams.
fn start_child(tag: &str, leaves_session: bool) -> io::Result<()> {
    let program = std::env::current_exe()?;
    let mut command = if leaves_session { Command::new("setsid") } else { Command::new(&program) };
    if leaves_session {
        command.arg(&program);
    }
    let command = command.args(["worker", "sleep", tag]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(drop)
}

/// The line that ends the output of a process that echoes.
pub fn last_line(input: &[u8]) -> String {
    format!("end {} {:016x}", input.len(), hash(&[input]))
}

fn echo(output: &mut Output) -> io::Result<()> {
    let mut input = Vec::new();
    let mut stdin = io::stdin().lock();
    loop {
        let from = input.len();
        if stdin.read_until(b'\n', &mut input)? == 0 {
            break;
        }
        if let Some(line) = input[from..].strip_suffix(b"\n") {
            output.write(0, &format!("echo {}", String::from_utf8_lossy(line)))?;
        }
    }
    output.write(0, &last_line(&input))
}

/// The line that a process writes for the `count`th SIGUSR1.
pub fn signal_line(count: u64) -> String {
    format!("signal {count}")
}

fn hold(output: &mut Output, signals: &SigSet, code: Option<i32>) -> io::Result<i32> {
    let mut count = 0;
    loop {
        match (signals.wait()?, code) {
            (Signal::SIGTERM, Some(code)) => return Ok(code),
            (Signal::SIGUSR1, _) => {
                count += 1;
                output.write(0, &signal_line(count))?;
            }
            _ => {}
        }
    }
}
