//! The commands of `tlctl` and their options, as one table. The parser, `--help`, the completions and the manual page
//! are made from it. The program that writes the last two (`init/manual`) includes this file, so it imports nothing.

/// What a command does: one variant for each row of [`COMMANDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Ps,
    Status,
    Logs,
    Run,
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
    Signal,
    Wait,
    Usage,
    Top,
    Events,
    Ports,
    Boot,
    Shutdown,
}

/// The operands of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operands {
    None,
    /// A process: a PID or a name.
    Process,
    /// A process and a signal.
    ProcessAndSignal,
    /// A command line: everything from the first operand on.
    Command,
    /// A process, or `--` and a command line.
    ProcessOrCommand,
}

/// The value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No value.
    Flag,
    Text,
    /// The path of a file.
    File,
    /// The path of a directory.
    Directory,
    /// A whole number.
    Number,
    /// A number of seconds above 0; it may have a fraction.
    Seconds,
    /// A number of seconds from 0 on; it may have a fraction.
    Grace,
    /// A variable of the environment.
    Variable,
    /// A limit: one of [`LIMITS`] and its value.
    Limit,
    OneOf(&'static [&'static str]),
}

/// One option.
#[derive(Debug)]
pub(crate) struct Opt {
    pub(crate) name: &'static str,
    /// The letter of its short form, if it has one.
    pub(crate) letter: Option<char>,
    pub(crate) kind: Kind,
    /// The name of its value, for `--help`. Empty for a flag.
    pub(crate) value: &'static str,
    pub(crate) help: &'static str,
}

/// One command.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) action: Action,
    pub(crate) operands: Operands,
    pub(crate) help: &'static str,
    pub(crate) options: &'static [Opt],
}

const fn opt(name: &'static str, kind: Kind, value: &'static str, help: &'static str) -> Opt {
    Opt { name, letter: None, kind, value, help }
}

const fn short(letter: char, name: &'static str, kind: Kind, value: &'static str, help: &'static str) -> Opt {
    Opt { name, letter: Some(letter), kind, value, help }
}

const fn command(
    name: &'static str,
    action: Action,
    operands: Operands,
    help: &'static str,
    options: &'static [Opt],
) -> Command {
    Command { name, action, operands, help, options }
}

const USER: Opt = opt("user", Kind::Text, "USER", "user of the command: a name, a UID or UID:GID");
const ENV: Opt = short('e', "env", Kind::Variable, "KEY=VALUE", "variable for the command; may be repeated");
const DIR: Opt = opt("dir", Kind::Text, "DIR", "working directory of the command");
const NO_NEW_PRIVS: Opt =
    opt("no-new-privs", Kind::Flag, "", "the command can gain no privileges by what it executes, by sudo for example");

const LIMIT: Opt = opt(
    "limit",
    Kind::Limit,
    "NAME=VALUE",
    "limit of the command and its children, such as memory=256M, cpus=0.5 or processes=20; may be repeated",
);

/// The options that every command has.
pub(crate) const GLOBAL: &[Opt] = &[
    opt(
        "url",
        Kind::Text,
        "URL",
        "address of the API; by default that in <run-dir>/address, or port 9501 of this host",
    ),
    opt("token-file", Kind::File, "FILE", "file with the bearer token; by default <run-dir>/token"),
    opt("run-dir", Kind::Directory, "DIR", "directory of the daemon's files `token` and `address` [/run/tl-init]"),
    opt(
        "json",
        Kind::Flag,
        "",
        "print the response of the API as JSON; run, top, events and logs --follow: one document for each event",
    ),
    short('h', "help", Kind::Flag, "", "print help, also about one command"),
    short('V', "version", Kind::Flag, "", "print the version"),
];

/// All commands, in the order of `--help`.
pub(crate) const COMMANDS: &[Command] = &[
    command(
        "ps",
        Action::Ps,
        Operands::None,
        "list running and managed processes; with --json, all",
        &[short('a', "all", Kind::Flag, "", "also list the processes that have ended")],
    ),
    command("status", Action::Status, Operands::Process, "show one process; exit with 3 if it is not running", &[]),
    command(
        "logs",
        Action::Logs,
        Operands::Process,
        "print the output of a process",
        &[
            short('f', "follow", Kind::Flag, "", "wait for more output until the process has ended"),
            short('n', "lines", Kind::Number, "N", "print only the last N lines of what is kept"),
            opt("stream", Kind::OneOf(&["stdout", "stderr"]), "STREAM", "print only stdout or only stderr"),
        ],
    ),
    command(
        "run",
        Action::Run,
        Operands::Command,
        "run a command, print its output and exit with its exit status",
        &[
            USER,
            ENV,
            DIR,
            NO_NEW_PRIVS,
            LIMIT,
            opt("timeout", Kind::Seconds, "SECS", "kill the command and its children after this time"),
        ],
    ),
    command(
        "start",
        Action::Start,
        Operands::ProcessOrCommand,
        "start a stopped managed process again, or a new process",
        &[
            opt("name", Kind::Text, "NAME", "name of the new process, which makes it managed"),
            opt(
                "restart",
                Kind::OneOf(&["never", "on_failure", "always"]),
                "POLICY",
                "when the new process is restarted: never, on_failure or always; it makes it managed",
            ),
            USER,
            ENV,
            DIR,
            NO_NEW_PRIVS,
            LIMIT,
        ],
    ),
    command("stop", Action::Stop, Operands::Process, "stop a managed process, kill any other; wait for its end", &[]),
    command("restart", Action::Restart, Operands::Process, "stop a managed process and start it again", &[]),
    command("pause", Action::Pause, Operands::Process, "stop the execution of a process and its children for now", &[]),
    command("resume", Action::Resume, Operands::Process, "let a process that was paused run on", &[]),
    command(
        "signal",
        Action::Signal,
        Operands::ProcessAndSignal,
        "send a signal: a name or a number",
        &[opt(
            "scope",
            Kind::OneOf(&["leader", "group", "tree"]),
            "SCOPE",
            "processes that get it: leader, group or tree; by default the group, for KILL the tree",
        )],
    ),
    command(
        "wait",
        Action::Wait,
        Operands::Process,
        "wait for the end of a process and exit with its exit status, or wait for a condition",
        &[
            opt(
                "for",
                Kind::OneOf(&["end", "healthy", "line", "port"]),
                "CONDITION",
                "what to wait for: end, healthy, line or port; 0 if it is met, 1 if the process has ended before [end]",
            ),
            opt("contains", Kind::Text, "TEXT", "with --for line: the text that the line contains"),
            opt("stream", Kind::OneOf(&["stdout", "stderr"]), "STREAM", "with --for line: stdout or stderr only"),
            opt("port", Kind::Number, "PORT", "with --for port: the port on which a process of the tree listens"),
            opt("timeout", Kind::Grace, "SECS", "exit with 1 after this time; by default never"),
        ],
    ),
    command(
        "usage",
        Action::Usage,
        Operands::Process,
        "show the CPU time, the memory and more that the current or last run of a process has used",
        &[],
    ),
    command(
        "top",
        Action::Top,
        Operands::None,
        "show the running and managed processes with what they use, again and again",
        &[
            short('d', "delay", Kind::Seconds, "SECS", "time between two updates [2]"),
            short('n', "count", Kind::Number, "N", "number of updates; by default 1 if stdout is no terminal"),
        ],
    ),
    command(
        "events",
        Action::Events,
        Operands::None,
        "print what has happened to processes and terminal sessions, as far as it is kept",
        &[
            short('f', "follow", Kind::Flag, "", "wait for more events until the daemon ends"),
            opt("process", Kind::Text, "PROCESS", "only events about this process: a PID or a name"),
            opt("ports", Kind::Flag, "", "also say which TCP ports are opened and closed"),
        ],
    ),
    command(
        "ports",
        Action::Ports,
        Operands::None,
        "list the TCP ports on which processes listen, or wait for one",
        &[
            opt("wait", Kind::Number, "PORT", "wait until a process listens on this port"),
            opt("timeout", Kind::Grace, "SECS", "with --wait: exit with 1 after this time; by default never"),
            opt("http-path", Kind::Text, "PATH", "with --wait: also wait until GET PATH is answered, with any status"),
        ],
    ),
    command("boot", Action::Boot, Operands::None, "show what the boot did, and the services from files", &[]),
    command(
        "shutdown",
        Action::Shutdown,
        Operands::None,
        "power the machine off, or end the daemon if it is not that of a machine",
        &[
            opt("poweroff", Kind::Flag, "", "power the machine off"),
            opt("reboot", Kind::Flag, "", "restart the machine"),
            opt("halt", Kind::Flag, "", "halt the machine"),
            opt("exit", Kind::Flag, "", "end the daemon, where it is not that of a machine"),
            opt("grace", Kind::Grace, "SECS", "time from SIGTERM to SIGKILL, a day at most; by default the daemon's"),
        ],
    ),
];

impl Operands {
    /// How a usage line shows them.
    pub(crate) fn usage(self) -> &'static str {
        match self {
            Operands::None => "",
            Operands::Process => " PROCESS",
            Operands::ProcessAndSignal => " PROCESS SIGNAL",
            Operands::Command => " [--] COMMAND [ARG…]",
            Operands::ProcessOrCommand => " PROCESS | -- COMMAND [ARG…]",
        }
    }
}

/// The names of the limits of `--limit`, and of the fields of the API.
pub(crate) const LIMITS: [(&str, &str); 6] = [
    ("memory", "memory_bytes"),
    ("memory-high", "memory_high_bytes"),
    ("cpus", "cpus"),
    ("cpu-weight", "cpu_weight"),
    ("processes", "processes"),
    ("open-files", "open_files"),
];

/// The names of the signals from 1 to 31, without `SIG`.
pub(crate) const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
