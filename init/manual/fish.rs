//! The completion for fish, of `tlctl` and of `tl-init`.

use super::bash::limits;
use super::options::{self, OPTIONS};
use super::table::{COMMANDS, GLOBAL, Kind, Operands, Opt, SIGNALS};

pub(crate) fn script() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let names = names.join(" ");
    let mut text = "# Completion of tlctl and tl-init for fish. Made by init/manual of the source code of tl-init.\n\n\
         function __tlctl_processes\n\
         \x20   tlctl ps --json 2>/dev/null | string match -ra '\"pid\":[0-9]+|\"name\":\"[^\"]*\"' |\n\
         \x20       string replace -r '^[^:]*:' '' | string replace -a '\"' ''\n\
         end\n\n\
         complete -c tlctl -f\n"
        .to_owned();
    let none = format!("not __fish_seen_subcommand_from {names}");
    for command in COMMANDS {
        text += &format!("complete -c tlctl -n '{none}' -a {} -d '{}'\n", command.name, plain(command.help));
    }
    text += &options(GLOBAL, "");
    for command in COMMANDS {
        let seen = format!(" -n '__fish_seen_subcommand_from {}'", command.name);
        text += &options(command.options, &seen);
        text += &match command.operands {
            Operands::None => String::new(),
            Operands::Process | Operands::ProcessOrCommand => {
                format!("complete -c tlctl{seen} -a '(__tlctl_processes)'\n")
            }
            Operands::ProcessAndSignal => format!(
                "complete -c tlctl{seen} -a '(__tlctl_processes)'\ncomplete -c tlctl{seen} -a '{}'\n",
                SIGNALS.join(" ")
            ),
            Operands::Command => format!("complete -c tlctl{seen} -a '(__fish_complete_subcommand)'\n"),
        };
    }
    text += "\ncomplete -c tl-init -f\ncomplete -c tl-init -n __fish_is_first_arg -a ctl -d 'the client, tlctl'\n";
    for option in OPTIONS {
        let value = match option.value {
            "" => String::new(),
            "FILE" => " -rF".to_owned(),
            "DIR" => " -xa '(__fish_complete_directories)'".to_owned(),
            _ => format!(" -xa '{}'", options::words(option).join(" ")),
        };
        text += &format!("complete -c tl-init -l {}{value} -d '{}'\n", option.name, plain(option.help));
    }
    text
}

fn options(options: &[Opt], condition: &str) -> String {
    let mut text = String::new();
    for option in options {
        let value = match option.kind {
            Kind::Flag => String::new(),
            Kind::File => " -rF".to_owned(),
            Kind::Directory => " -xa '(__fish_complete_directories)'".to_owned(),
            Kind::OneOf(words) => format!(" -xa '{}'", words.join(" ")),
            Kind::Limit => format!(" -xa '{}'", limits().join(" ")),
            Kind::Text | Kind::Number | Kind::Seconds | Kind::Grace | Kind::Variable => " -x".to_owned(),
        };
        let letter = option.letter.map_or(String::new(), |letter| format!(" -s {letter}"));
        let (name, help) = (option.name, plain(option.help));
        text += &format!("complete -c tlctl{condition} -l {name}{letter}{value} -d '{help}'\n");
    }
    text
}

/// The text without characters that end a quoted word.
fn plain(text: &str) -> String {
    text.replace(['\'', '`'], "")
}
