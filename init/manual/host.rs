//! The manual page and the completions of `tl-host`, from its table of options.

use super::host_options::{self, COMMANDS, OPTIONS, Opt, variable};
use super::pages::sentence;
use super::roff::Page;

/// tl-host(8).
pub(crate) fn page(version: &str) -> String {
    let mut page = Page::new("tl-host", 8, version, "sandboxes on your own machine");
    page.section("SYNOPSIS");
    page.paragraph("**tl-host** [*OPTION*...]");
    for command in COMMANDS {
        page.paragraph(&format!("**tl-host {}** [*OPTION*...] {}", command.name, command.usage.replace('*', "")));
    }
    page.section("DESCRIPTION");
    page.paragraph(
        "**tl-host** makes sandboxes on this machine for the public clients: each is a container of Podman or Docker, whose \
         first process is **tl-init**(8). It serves the API that makes, suspends, copies and ends sandboxes, and a proxy \
         that leads to them.",
    );
    page.paragraph(
        "At the start it prints the environment that a client needs. It serves until SIGTERM or SIGINT; sandboxes go on \
         without it, and the next start finds them.",
    );
    page.section("COMMANDS");
    for command in COMMANDS {
        page.subsection(&format!("{} {}", command.name, command.usage));
        page.paragraph(&sentence(command.help, ""));
    }
    page.section("OPTIONS");
    page.paragraph("An option that is not on the command line is taken from the environment.");
    for option in OPTIONS.iter().chain(COMMANDS.iter().flat_map(|command| command.options)) {
        let value = if option.value.is_empty() { String::new() } else { format!(" *{}*", option.value) };
        page.term(&format!("**--{}**{value}", option.name), &sentence(option.help, option.default));
    }
    page.term("**--help**, **-h**", "Print a summary of the options.");
    page.term("**--version**, **-V**", "Print the version.");
    page.section("EXIT STATUS");
    page.term("**0**", "Success; also after SIGTERM and SIGINT.");
    page.term("**1**", "An error, about which there is one line on stderr.");
    page.term("**2**", "The command line or a variable is not valid.");
    page.section("ENVIRONMENT");
    let example = variable("state-dir");
    page.paragraph(&format!("**TL_HOST_***OPTION* sets an option: **{example}** sets **--state-dir**."));
    page.section("FILES");
    page.paragraph("In the state directory, which only one **tl-host** uses at a time:");
    page.term("*key*", "The API key, if **--key-file** is not given.");
    page.term("*address*", "The address of the API, while **tl-host** runs.");
    page.term("*sandboxes/*, *snapshots/*", "A record for each sandbox and for each snapshot.");
    page.term("*tokens/*", "For each sandbox the token of its **tl-init**, which no client ever sees.");
    page.section("SIGNALS");
    page.paragraph("SIGTERM and SIGINT end **tl-host**. **tl-host stop --all** ends the sandboxes too.");
    page.section("SEE ALSO");
    page.paragraph("**tl-init**(8), **podman-system-service**(1)");
    page.finish()
}

fn words(option: &Opt) -> String {
    host_options::words(option).join(" ")
}

/// The long options of all commands, each once.
fn options() -> impl Iterator<Item = &'static Opt> {
    OPTIONS.iter().chain(COMMANDS.iter().flat_map(|command| command.options))
}

fn commands() -> String {
    COMMANDS.iter().map(|command| command.name).collect::<Vec<_>>().join(" ")
}

/// The options with this name of a value, as alternatives of a shell pattern.
fn with_value(value: &str) -> String {
    let named = options().filter(|option| option.value == value);
    named.map(|option| format!("--{}", option.name)).collect::<Vec<_>>().join(" | ")
}

/// The completion for bash.
pub(crate) fn bash() -> String {
    let mut cases = String::new();
    for option in options().filter(|option| !words(option).is_empty()) {
        let line = format!("COMPREPLY=($(compgen -W '{}' -- \"$current\")); return ;;", words(option));
        cases += &format!("    --{}) {line}\n", option.name);
    }
    let names: Vec<String> = options().map(|option| format!("--{}", option.name)).collect();
    format!(
        "# Completion of tl-host for bash. Made by init/manual of the source code of tl-init.\n\n\
         _tl_host() {{\n\
         \x20   local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} word command=\n\
         \x20   case $previous in\n{cases}\
         \x20   {}) COMPREPLY=($(compgen -f -- \"$current\")); return ;;\n\
         \x20   {}) COMPREPLY=($(compgen -d -- \"$current\")); return ;;\n\
         \x20   esac\n\
         \x20   for word in \"${{COMP_WORDS[@]:1:COMP_CWORD-1}}\"; do\n\
         \x20       case $word in {}) command=$word ;; esac\n\
         \x20   done\n\
         \x20   if [[ $command == import && $current != -* ]]; then\n\
         \x20       COMPREPLY=($(compgen -f -- \"$current\"))\n\
         \x20       return\n\
         \x20   fi\n\
         \x20   COMPREPLY=($(compgen -W '{} {} --help --version' -- \"$current\"))\n\
         }}\n\n\
         complete -F _tl_host tl-host\n",
        with_value("FILE"),
        with_value("DIR"),
        commands().replace(' ', " | "),
        commands(),
        names.join(" "),
    )
}

/// The completion for zsh.
pub(crate) fn zsh() -> String {
    let mut text = "#compdef tl-host\n\
                    # Completion of tl-host for zsh. Made by init/manual of the source code of tl-init.\n\n\
                    _tl_host() {\n    _arguments"
        .to_owned();
    for option in options() {
        let value = match option.value {
            "" => String::new(),
            "FILE" => ":FILE:_files".to_owned(),
            "DIR" => ":DIR:_files -/".to_owned(),
            value => format!(":{}:({})", plain(value), words(option)),
        };
        let repeat = if host_options::is_list(option.name) { "*" } else { "" };
        text += &format!(" \\\n        '{repeat}--{}[{}]{value}'", option.name, plain(option.help));
    }
    text += &format!(" \\\n        '1:command:({})' '2:file:_files'\n}}\n\n_tl_host \"$@\"\n", commands());
    text
}

/// The completion for fish.
pub(crate) fn fish() -> String {
    let mut text = "# Completion of tl-host for fish. Made by init/manual of the source code of tl-init.\n\n\
                    complete -c tl-host -f\n"
        .to_owned();
    for command in COMMANDS {
        let (name, help) = (command.name, plain(command.help));
        text += &format!("complete -c tl-host -n __fish_is_first_arg -a {name} -d '{help}'\n");
    }
    text += "complete -c tl-host -n '__fish_seen_subcommand_from import' -F\n";
    for option in options() {
        let value = match option.value {
            "" => String::new(),
            "FILE" => " -rF".to_owned(),
            "DIR" => " -xa '(__fish_complete_directories)'".to_owned(),
            _ => format!(" -xa '{}'", words(option)),
        };
        text += &format!("complete -c tl-host -l {}{value} -d '{}'\n", option.name, plain(option.help));
    }
    text
}

/// The text without characters that mean something to a shell or in a specification of zsh.
fn plain(text: &str) -> String {
    text.replace('[', "(").replace(']', ")").replace(':', ",").replace(['\'', '`'], "")
}
