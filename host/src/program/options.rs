//! The table of options and subcommands, and the text of `--help`. It imports only the standard library: the manual page
//! and the completions are made from it by a program of its own (`init/manual`).

/// What the names of the options' environment variables begin with.
pub(crate) const PREFIX: &str = "TL_HOST_";

/// One option. A flag has an empty `value`.
pub(crate) struct Opt {
    pub(crate) name: &'static str,
    /// The name of its value, for `--help`.
    pub(crate) value: &'static str,
    /// The text that takes the place of a value that was not given.
    pub(crate) default: &'static str,
    pub(crate) help: &'static str,
}

const fn opt(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Opt {
    Opt { name, value, default, help }
}

/// All options of the server, in the order of `--help`. The subcommands take them too.
pub(crate) const OPTIONS: &[Opt] = &[
    opt("api", "ADDR:PORT", "127.0.0.1:8900", "address of the API that makes and ends sandboxes"),
    opt("proxy", "ADDR:PORT", "127.0.0.1:9443", "address of the proxy that leads to the sandboxes"),
    opt(
        "engine",
        "URL",
        "",
        "socket of Podman or Docker: unix:///PATH or tcp://HOST:PORT; by default one is looked for",
    ),
    opt("key-file", "FILE", "", "file with the API key, readable by its owner only; by default one is made and kept"),
    opt("state-dir", "DIR", "", "directory of the records; by default /var/lib/tl-host, or ~/.local/state/tl-host"),
    opt("default-image", "IMAGE", "localhost/tl-default", "image of a sandbox whose request names none"),
    opt("init", "FILE", "", "the static tl-init; by default beside this program, then /usr/lib/tl-init/tl-init"),
    opt("runtime", "NAME", "", "OCI runtime of the sandboxes, such as kata or runsc; by default that of the engine"),
    opt("ulimit", "NAME=SOFT:HARD", "", "resource limit of the sandboxes; may be repeated, or be a list"),
    opt("warm", "N", "0", "number of containers of the default image that are kept ready for the next sandbox"),
    opt(
        "idle-secs",
        "SECS",
        "600",
        "time after which a connection without a request, or whose request body stands still, is closed",
    ),
    opt("log-level", "LEVEL", "info", "level of the log: off, error, warn, info, debug or trace"),
    opt("log-format", "FORMAT", "text", "format of the log: text or json"),
];

/// One subcommand.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// What follows the name, for `--help`.
    pub(crate) usage: &'static str,
    /// Options that no other command takes.
    pub(crate) options: &'static [Opt],
    pub(crate) help: &'static str,
}

/// All subcommands. Without one, the program serves.
pub(crate) const COMMANDS: &[Command] = &[
    Command {
        name: "doctor",
        usage: "",
        options: &[],
        help: "say what is missing on this machine, line by line, and how to get it",
    },
    Command {
        name: "import",
        usage: "DIR|TAR --name NAME",
        options: &[opt("name", "NAME", "", "name of the image")],
        help: "make an image of a root file system: a directory, or a tar archive; - is standard input",
    },
    Command {
        name: "stop",
        usage: "--all [--purge]",
        options: &[
            opt("all", "", "", "end all sandboxes, and tl-host if it runs"),
            opt("purge", "", "", "then remove the snapshots and the state directory too"),
        ],
        help: "end all sandboxes; SIGTERM ends tl-host only, and its sandboxes go on",
    },
];

/// The words of which one is the value; none if other values are valid. Only the completions and a test use it.
#[allow(dead_code)]
pub(crate) fn words(option: &Opt) -> &'static [&'static str] {
    match option.value {
        "LEVEL" => &["off", "error", "warn", "info", "debug", "trace"],
        "FORMAT" => &["text", "json"],
        _ => &[],
    }
}

/// Whether an option that is given several times has all the values, separated by spaces or commas.
pub(crate) fn is_list(option: &str) -> bool {
    option == "ulimit"
}

/// The environment variable that sets an option.
pub(crate) fn variable(option: &str) -> String {
    format!("{PREFIX}{}", option.to_ascii_uppercase().replace('-', "_"))
}

/// The text of `--help`.
pub(crate) fn help() -> String {
    let mut text = "tl-host: makes sandboxes on this machine, for the public clients, out of containers of Podman or \
                    Docker\n\nusage: tl-host [OPTION…]                  serve until SIGTERM or SIGINT; sandboxes go on\n"
        .to_owned();
    for command in COMMANDS {
        text += &format!("       tl-host {:<26} {}\n", format!("{} {}", command.name, command.usage), command.help);
    }
    text.push('\n');
    for option in OPTIONS {
        let left = format!("--{} {}", option.name, option.value);
        let default = if option.default.is_empty() { String::new() } else { format!(" [{}]", option.default) };
        text += &format!("  {left:<26} {}{default}\n", option.help);
    }
    text += "  --help, -h                 print this text\n  --version, -V              print the version\n\n\
             An option that is not on the command line is taken from the environment: TL_HOST_STATE_DIR sets \
             --state-dir.\n";
    text
}
