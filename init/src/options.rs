//! The table of options, and the text of `--help`.

/// What the names of the options' environment variables begin with.
pub(crate) const PREFIX: &str = "TL_INIT_";

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

/// All options, in the order of `--help`.
pub(crate) const OPTIONS: &[Opt] = &[
    opt("listen", "ADDR:PORT", "0.0.0.0:9501", "address on which the API listens"),
    opt("token-file", "FILE", "", "file with the bearer token, readable by its owner only; by default a token is made"),
    opt("no-auth", "", "", "accept requests without a token; use only behind a proxy that authenticates"),
    opt("cors-origin", "ORIGIN", "", "origin of web pages that may use the API; may be repeated, or be a list"),
    opt("default-user", "USER", "tl-user", "default user for commands: a name, a UID, UID:GID or a JSON object"),
    opt("create-user", "NAME:UID", "", "user that is made at the start, with its group and home, if it does not exist"),
    opt("no-new-privs", "", "", "commands can gain no privileges by what they execute, by sudo for example"),
    opt("default-limits", "JSON", "", "limits of commands that do not set the same one: a JSON object as in the API"),
    opt("env-file", "FILE", "", "file with KEY=value lines for the environment of all commands"),
    opt("command", "JSON", "", "the main process as a JSON array of strings, where `-- COMMAND` is not possible"),
    opt("config-dir", "DIR", "/etc/tl-init", "directory of init.conf and services/*.json"),
    opt("log-dir", "DIR", "/var/log/tl-init", "directory for the output of commands"),
    opt("run-dir", "DIR", "/run/tl-init", "directory for the files `token` and `address`"),
    opt("log-level", "LEVEL", "info", "level of the daemon's own log: off, error, warn, info, debug or trace"),
    opt("log-format", "FORMAT", "text", "format of the daemon's own log: text or json"),
    opt("console-output", "", "", "copy the output of managed processes to stdout, each line after `NAME | `"),
    opt("shutdown-grace", "SECS", "10", "at shutdown, time from SIGTERM to SIGKILL"),
    opt("log-limit", "BYTES", "256M", "maximum output kept for each process"),
    opt(
        "log-total",
        "BYTES",
        "1G",
        "maximum output kept for all processes; by default at most a tenth of the file system",
    ),
    opt("keep-ended", "N", "1000", "number of ended processes that are kept"),
    opt("max-processes", "N", "4096", "maximum number of running processes"),
    opt("max-tasks", "N", "", "maximum number of tasks of all commands; by default all but a reserve for the daemon"),
    opt("max-pty-sessions", "N", "64", "maximum number of running terminal sessions"),
    opt("pty-idle-secs", "SECS", "300", "time after which a terminal session without a client ends"),
    opt("max-connections", "N", "1024", "maximum number of open connections"),
    opt("metrics-per-process", "NAME", "", "process whose usage is in the metrics; may be repeated, or be a list"),
    opt("max-body", "BYTES", "1M", "maximum size of a JSON body"),
    opt("max-head", "BYTES", "64K", "maximum size of a request's head"),
    opt("head-secs", "SECS", "10", "time for a client to send a request's head"),
    opt("idle-secs", "SECS", "75", "time after which an idle connection is closed"),
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
    matches!(option, "cors-origin" | "metrics-per-process")
}

/// The environment variable that sets an option.
pub(crate) fn variable(option: &str) -> String {
    format!("{PREFIX}{}", option.to_ascii_uppercase().replace('-', "_"))
}

/// The text of `--help`.
pub(crate) fn help() -> String {
    let mut text = "tl-init: PID 1 of a sandbox, controlled by a remote client over HTTP\n\n\
                    usage: tl-init [OPTION…] [-- COMMAND ARG…]\n       \
                    tl-init ctl COMMAND…    the client, tlctl; see tl-init ctl --help\n\n"
        .to_owned();
    for option in OPTIONS {
        let left = format!("--{} {}", option.name, option.value);
        let default = if option.default.is_empty() { String::new() } else { format!(" [{}]", option.default) };
        text += &format!("  {left:<26} {}{default}\n", option.help);
    }
    text += "  --help, -h                 print this text\n  --version, -V              print the version\n\n\
             An option that is not on the command line is taken from the environment, and then from init.conf:\n\
             TL_INIT_LOG_DIR sets --log-dir.\n\n\
             COMMAND is the main process: when it ends, tl-init shuts down and exits with the same exit code.\n";
    text
}
