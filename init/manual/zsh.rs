//! The completion for zsh, of `tlctl` and of `tl-init`.

use super::bash::limits;
use super::options::{self, OPTIONS};
use super::table::{COMMANDS, GLOBAL, Kind, Operands, Opt, SIGNALS};

pub(crate) fn script() -> String {
    let mut text = format!(
        "#compdef tlctl tl-init\n\
         # Completion of tlctl and tl-init for zsh. Made by init/manual of the source code of tl-init.\n\n\
         _tlctl_processes() {{\n\
         \x20   local -a processes\n\
         \x20   processes=(${{(f)\"$(tlctl ps --json 2>/dev/null | grep -o '\"pid\":[0-9]*\\|\"name\":\"[^\"]*\"' |\n\
         \x20       sed 's/^[^:]*://; s/\"//g')\"}})\n\
         \x20   compadd -a processes\n\
         }}\n\n\
         _tlctl() {{\n\
         \x20   local context state state_descr line\n\
         \x20   typeset -A opt_args\n\
         \x20   _arguments -C{} '(-): :->command' '(-)*:: :->argument'\n\
         \x20   case $state in\n\
         \x20   command)\n\
         \x20       local -a commands\n\
         \x20       commands=(",
        specs(GLOBAL)
    );
    for command in COMMANDS {
        text += &format!("\n            '{}:{}'", command.name, plain(command.help));
    }
    text += "\n        )\n        _describe command commands ;;\n    argument)\n        case $line[1] in\n";
    for command in COMMANDS {
        let operands = match command.operands {
            Operands::None => String::new(),
            Operands::Process | Operands::ProcessOrCommand => " '1:process:_tlctl_processes'".to_owned(),
            Operands::ProcessAndSignal => {
                format!(" '1:process:_tlctl_processes' '2:signal:({})'", SIGNALS.join(" "))
            }
            Operands::Command => " '*::command:_normal'".to_owned(),
        };
        text +=
            &format!("        {}) _arguments{}{}{operands} ;;\n", command.name, specs(command.options), specs(GLOBAL));
    }
    text += "        esac ;;\n    esac\n}\n\n";
    text += "_tl_init() {\n    if [[ $words[2] == ctl ]] && ((CURRENT > 2)); then\n        shift words\n        ((CURRENT--))\n        _tlctl\n        return\n    fi\n    _arguments";
    for option in OPTIONS {
        let value = match option.value {
            "" => String::new(),
            "FILE" => ":FILE:_files".to_owned(),
            "DIR" => ":DIR:_files -/".to_owned(),
            value => format!(":{}:({})", plain(value), options::words(option).join(" ")),
        };
        text += &format!(" \\\n        '--{}[{}]{value}'", option.name, plain(option.help));
    }
    text += " \\\n        '1:command:(ctl)' '*::command:_normal'\n}\n\n";
    text += "case $service in\ntl-init) _tl_init \"$@\" ;;\n*) _tlctl \"$@\" ;;\nesac\n";
    text
}

/// The options as arguments of `_arguments`.
fn specs(options: &[Opt]) -> String {
    let mut text = String::new();
    for option in options {
        let value = match option.kind {
            Kind::Flag => String::new(),
            Kind::File => format!(":{}:_files", option.value),
            Kind::Directory => format!(":{}:_files -/", option.value),
            Kind::OneOf(words) => format!(":{}:({})", option.value, words.join(" ")),
            // The value follows the name without a space.
            Kind::Limit => format!(":{}:compadd -S \"\" - {}", option.value, limits().join(" ")),
            Kind::Text | Kind::Number | Kind::Seconds | Kind::Grace | Kind::Variable => format!(":{}: ", option.value),
        };
        let help = plain(option.help);
        let repeat = if matches!(option.kind, Kind::Variable | Kind::Limit) { "*" } else { "" };
        if let Some(letter) = option.letter {
            text += &format!(" \\\n        '{repeat}-{letter}[{help}]{value}'");
        }
        text += &format!(" \\\n        '{repeat}--{}[{help}]{value}'", option.name);
    }
    text
}

/// The text without characters that mean something in a specification.
fn plain(text: &str) -> String {
    text.replace('[', "(").replace(']', ")").replace(':', ",").replace(['\'', '`'], "")
}
