//! The three manual pages. Options and commands come from the tables; the rest of the text is here.

use super::options::{OPTIONS, variable};
use super::roff::Page;
use super::table::{COMMANDS, GLOBAL, Opt};

/// tl-init(8).
pub(crate) fn tl_init(version: &str) -> String {
    let mut page = Page::new("tl-init", 8, version, "PID 1 of a sandbox, controlled by a remote client over HTTP");
    page.section("SYNOPSIS");
    page.paragraph("**tl-init** [*OPTION*...] [**--** *COMMAND* [*ARG*...]]");
    page.paragraph("**tl-init ctl** [*OPTION*...] *COMMAND* [*ARG*...]");
    page.section("DESCRIPTION");
    page.paragraph(
        "**tl-init** starts processes for a remote client, captures their output, restarts services and reaps orphans. \
         It is the first process of a virtual machine or of a container, or an ordinary process. On a machine it also \
         mounts file systems, and powers the machine off.",
    );
    page.paragraph(
        "*COMMAND* is the main process: when it ends, **tl-init** ends all other processes and exits with its exit \
         status.",
    );
    page.paragraph("**tl-init ctl** is the client of a running **tl-init**, see **tlctl**(1).");
    page.section("OPTIONS");
    page.paragraph(
        "An option that is not on the command line is taken from the environment, and then from **init.conf**(5). On a \
         machine the command line is not read, because the kernel passes some of its own arguments there.",
    );
    for option in OPTIONS {
        let value = if option.value.is_empty() { String::new() } else { format!(" *{}*", option.value) };
        page.term(&format!("**--{}**{value}", option.name), &sentence(option.help, option.default));
    }
    page.term("**--help**, **-h**", "Print a summary of the options.");
    page.term("**--version**, **-V**", "Print the version.");
    page.section("EXIT STATUS");
    page.paragraph(
        "In a container, that of the main process: 128 + *N* if signal *N* has killed it, 127 if it was not found, 126 if \
         it cannot be executed. Without a main process 0, or 130 after SIGINT. 1 for an invalid option, and if the start \
         failed.",
    );
    page.section("ENVIRONMENT");
    page.paragraph(
        "**TL_INIT_***OPTION* sets an option: **TL_INIT_LOG_DIR** sets **--log-dir**. A flag is set by **1** or \
         **true**.",
    );
    page.section("FILES");
    page.term("*/etc/tl-init/init.conf*", "More options, see **init.conf**(5).");
    page.term(
        "*/etc/tl-init/services/*",
        "The files NAME.json in this directory are services that are started at boot: each is a body of POST /api/v1/processes.",
    );
    page.term("*/run/tl-init/token*", "The bearer token, if **--token-file** is not given.");
    page.term("*/run/tl-init/address*", "The address on which the API listens.");
    page.term("*/var/log/tl-init*", "The output of commands; emptied at each start.");
    page.section("SIGNALS");
    page.paragraph(
        "With a main process, signals are forwarded to its process group. Otherwise SIGTERM begins the shutdown (on a \
         machine it powers off), SIGINT too (on a machine it reboots), and SIGHUP reads the service files again.",
    );
    page.section("SEE ALSO");
    page.paragraph("**tlctl**(1), **init.conf**(5)");
    page.finish()
}

/// init.conf(5).
pub(crate) fn init_conf(version: &str) -> String {
    let mut page = Page::new("init.conf", 5, version, "options of tl-init");
    page.section("SYNOPSIS");
    page.paragraph("*/etc/tl-init/init.conf*");
    page.section("DESCRIPTION");
    page.paragraph(
        "Each line is of the form *KEY*=*value*. White space around the key and **export** before it are ignored, as are \
         empty lines and lines that begin with **#**. The value is everything after the **=**, quotes included.",
    );
    page.paragraph(
        "A variable of the environment and an option on the command line take precedence. A line that is not valid is \
         reported in GET /api/v1/boot and in the log; the other lines apply.",
    );
    page.section("VARIABLES");
    for option in OPTIONS.iter().filter(|option| option.name != "config-dir") {
        let value = if option.value.is_empty() { "**1**".to_owned() } else { format!("*{}*", option.value) };
        page.term(&format!("**{}**={value}", variable(option.name)), &sentence(option.help, option.default));
    }
    page.section("EXAMPLE");
    page.example(&["TL_INIT_TOKEN_FILE=/etc/tl-init/token", "TL_INIT_LOG_LIMIT=64M", "TL_INIT_SHUTDOWN_GRACE=5"]);
    page.section("SEE ALSO");
    page.paragraph("**tl-init**(8), **tlctl**(1)");
    page.finish()
}

/// tlctl(1).
pub(crate) fn tlctl(version: &str) -> String {
    let mut page = Page::new("tlctl", 1, version, "control a running tl-init");
    page.section("SYNOPSIS");
    page.paragraph("**tlctl** [*OPTION*...] *COMMAND* [*ARG*...]");
    page.paragraph("**tl-init ctl** [*OPTION*...] *COMMAND* [*ARG*...]");
    page.section("DESCRIPTION");
    page.paragraph(
        "**tlctl** is the client of the HTTP API of **tl-init**(8). It is the same program: a link named *tlctl* that \
         leads to *tl-init* is enough. *PROCESS* is a PID or the name of a managed process.",
    );
    page.section("COMMANDS");
    for command in COMMANDS {
        page.subsection(&format!("{}{}", command.name, command.operands.usage()));
        page.paragraph(&sentence(command.help, ""));
        add_options(&mut page, command.options);
    }
    page.section("OPTIONS");
    page.paragraph("These are accepted before and after the command.");
    add_options(&mut page, GLOBAL);
    page.section("NOTES");
    notes(&mut page);
    page.section("EXIT STATUS");
    page.term("**0**", "Success.");
    page.term("**1**", "An error, about which there is one line on stderr.");
    page.term("**2**", "The command line is wrong.");
    page.paragraph(
        "**status** exits with 0 if the process is running, with 3 if it is not, and with 4 if there is no such process. \
         **ports --wait** exits with 1 if the port is not open after **--timeout**. **run** and **wait** exit with the exit status of the process: 128 + *N* if signal *N* has killed it, so 137 after a **--timeout**. **run** \
         exits with 127 if the command was not found, and with 126 if it cannot be executed.",
    );
    page.section("ENVIRONMENT");
    page.term(
        "**TL_INIT_URL**, **TL_INIT_TOKEN_FILE**, **TL_INIT_RUN_DIR**",
        "The same as the options with these names.",
    );
    page.term("**TL_INIT_CONFIG_DIR**", "The directory of **init.conf**(5) [/etc/tl-init].");
    page.term("**NO_COLOR**", "If it is set and not empty, the output has no colours.");
    page.section("FILES");
    page.term("*/run/tl-init/address*, */run/tl-init/token*", "The address of the API and the token.");
    page.term("*/etc/tl-init/init.conf*", "**TL_INIT_RUN_DIR** and **TL_INIT_TOKEN_FILE** are read from it too.");
    page.section("EXAMPLES");
    page.example(&[
        "tlctl run -- make test",
        "tlctl run --limit memory=256M --limit cpus=0.5 -- make test",
        "tlctl start --name web --restart always -- python3 -m http.server 8080",
        "tlctl logs -f -n 20 web",
        "tlctl signal web HUP",
        "tlctl pause web",
        "tlctl --url http://10.0.2.15:9501 --token-file token ps",
    ]);
    page.section("SEE ALSO");
    page.paragraph("**tl-init**(8), **init.conf**(5)");
    page.finish()
}

fn notes(page: &mut Page) {
    page.paragraph(
        "**logs** without **--follow** prints the output byte for byte as the process has written it: stdout to stdout and \
         stderr to stderr, or both in their order if stdout and stderr of **tlctl** are the same file. **--follow** and \
         **run** print lines: bytes that are not UTF-8 become U+FFFD, and each line ends in a newline.",
    );
    page.paragraph(
        "**run** passes its standard input on unless that is a terminal or another device. Such a command is ended by \
         **tlctl** when **tlctl** gets SIGINT, SIGTERM or SIGHUP or cannot write its output, but goes on running if \
         **tlctl** is killed by SIGKILL. \
         A command without input is killed by the daemon as soon as the connection ends, whatever the reason.",
    );
    page.paragraph(
        "**top** and **usage** show what the API measures: where the process has a cgroup that counts memory, of its whole \
         tree, otherwise of its leader. **CPU%** of **top** is the CPU time since the last update, 100 for one whole CPU, \
         and empty at the first one.",
    );
    page.paragraph(
        "The names of **--limit** are **memory** and **memory-high** (bytes, or with K, M or G), **cpus** (such as 0.5), \
         **cpu-weight** (1 to 10000), **processes** and **open-files**. All but the last one need a cgroup with a \
         controller; where that is missing, the command is not started.",
    );
    page.paragraph(
        "**--json** prints one JSON document; **logs --follow**, **run**, **top** and **events** print one for each event or \
         update, each on one line. The member **event** of what **events** prints is the type.",

    );
    page.paragraph(
        "The host of a URL is an IP address, **localhost**, or a name in */etc/hosts*: DNS is not used. TLS is not \
         supported. The token in <run-dir> belongs to the daemon of this host; it is not sent to the host of **--url** \
         unless that is on the loopback interface.",
    );
}

fn add_options(page: &mut Page, options: &[Opt]) {
    for option in options {
        let letter = option.letter.map_or(String::new(), |letter| format!("**-{letter}**, "));
        let value = if option.value.is_empty() { String::new() } else { format!(" *{}*", option.value) };
        page.term(&format!("{letter}**--{}**{value}", option.name), &sentence(option.help, ""));
    }
}

/// The text of `--help` as a sentence.
pub(crate) fn sentence(help: &str, default: &str) -> String {
    let mut letters = help.chars();
    let first = letters.next().map_or(String::new(), |letter| letter.to_uppercase().to_string());
    let default = if default.is_empty() { String::new() } else { format!(" The default is {default}.") };
    format!("{first}{}.{default}", letters.as_str())
}
