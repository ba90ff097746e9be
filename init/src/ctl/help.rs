//! The text of `--help`.

use super::table::{COMMANDS, Command, GLOBAL, Opt};

/// The help about all commands, or about one.
pub(crate) fn help(command: Option<&Command>) -> String {
    let Some(command) = command else { return overview() };
    let mut text = format!("tlctl {}: {}\n\nusage: tlctl {}", command.name, command.help, command.name);
    text += " [OPTION…]";
    text += command.operands.usage();
    text += "\n\n";
    add_options(&mut text, command.options);
    add_options(&mut text, GLOBAL);
    text
}

fn overview() -> String {
    let mut text = "tlctl: control a running tl-init through its API\n\n\
                    usage: tlctl [OPTION…] COMMAND [ARG…]\n\
                    \x20      tl-init ctl [OPTION…] COMMAND [ARG…]\n\n"
        .to_owned();
    for command in COMMANDS {
        text += &row(command.name, command.help);
    }
    text.push('\n');
    add_options(&mut text, GLOBAL);
    text += "\nPROCESS is a PID or the name of a managed process.\n\
             --url, --token-file and --run-dir are also read from TL_INIT_URL, TL_INIT_TOKEN_FILE and TL_INIT_RUN_DIR,\n\
             and the last two from the daemon's init.conf.\n\
             Exit status: 1 for an error, 2 for a wrong command line; `status`: 0 running, 3 not running, 4 no such\n\
             process; `run` and `wait`: that of the process, 128 + N if signal N has killed it (137 after a --timeout of `run`);\n\
             `run`: 127 if the command was not found, 126 if it cannot be executed.\n";
    text
}

fn add_options(text: &mut String, options: &[Opt]) {
    for option in options {
        let letter = option.letter.map_or(String::new(), |letter| format!("-{letter}, "));
        *text += &row(&format!("{letter}--{} {}", option.name, option.value), option.help);
    }
}

fn row(left: &str, right: &str) -> String {
    format!("  {left:<22} {right}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_command_and_every_option() {
        let overview = help(None);
        for command in COMMANDS {
            assert!(overview.contains(&format!("\n  {} ", command.name)), "{}", command.name);
            let own = help(Some(command));
            for option in command.options.iter().chain(GLOBAL) {
                assert!(own.contains(&format!("--{} ", option.name)), "{} --{}", command.name, option.name);
            }
        }
    }

    #[test]
    fn names_and_letters_of_options_are_unambiguous() {
        for command in COMMANDS {
            let all: Vec<&Opt> = command.options.iter().chain(GLOBAL).collect();
            for (at, option) in all.iter().enumerate() {
                for other in all.iter().skip(at + 1) {
                    assert_ne!(option.name, other.name);
                    assert!(option.letter.is_none() || option.letter != other.letter, "{}", option.name);
                }
                assert_eq!(option.value.is_empty(), option.kind == super::super::table::Kind::Flag, "{}", option.name);
            }
        }
    }
}
