//! The completion for bash, of `tlctl` and of `tl-init`.

use super::options::{self, OPTIONS};
use super::table::{COMMANDS, GLOBAL, Kind, LIMITS, Operands, Opt, SIGNALS};

pub(crate) fn script() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let mut text = format!(
        "# Completion of tlctl and tl-init for bash. Made by init/manual of the source code of tl-init.\n\n\
         {FUNCTIONS}\n\
         _tlctl() {{\n\
         \x20   local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}\n\
         \x20   local command= operands=0 at=${{1:-1}} word values=\n\
         \x20   [[ $at =~ ^[0-9]+$ ]] || at=1\n\
         \x20   for ((; at < COMP_CWORD; at++)); do\n\
         \x20       word=${{COMP_WORDS[at]}}\n\
         \x20       case $word in\n\
         \x20       --)\n\
         \x20           if [[ $command == run || $command == start ]]; then _tlctl_command_line \"$at\"; return; fi ;;\n\
         \x20       {}) ((at++)) ;;\n\
         \x20       -*) ;;\n\
         \x20       *) if [[ -z $command ]]; then command=$word; else ((operands++)); fi ;;\n\
         \x20       esac\n\
         \x20   done\n\
         \x20   case $previous in\n",
        with_value(GLOBAL.iter().chain(COMMANDS.iter().flat_map(|command| command.options))).join(" | ")
    );
    text += &cases(GLOBAL.iter().chain(COMMANDS.iter().flat_map(|command| command.options)), "    ");
    text += "    esac\n    case $command in\n";
    text += &format!("    '') values='{} {}' ;;\n", names.join(" "), long_names(GLOBAL));
    for command in COMMANDS {
        let own = format!("{} {}", long_names(command.options), long_names(GLOBAL));
        text += &format!("    {})\n        values='{}'\n", command.name, own.trim());
        text += match command.operands {
            Operands::Process | Operands::ProcessOrCommand => {
                "        [[ $current == -* ]] || values=$((( operands == 0 )) && _tlctl_processes) ;;\n".to_owned()
            }
            Operands::ProcessAndSignal => format!(
                "        [[ $current == -* ]] || {{ (( operands == 0 )) && values=$(_tlctl_processes) || values='{}'; }} ;;\n",
                SIGNALS.join(" ")
            ),
            Operands::Command => "        if ((operands > 0)) || [[ $current != -* ]]; then\n            _tlctl_command_line $((COMP_CWORD - operands - 1))\n            return\n        fi ;;\n".to_owned(),
            Operands::None => "        ;;\n".to_owned(),
        }
        .as_str();
    }
    text += "    esac\n    COMPREPLY=($(compgen -W \"$values\" -- \"$current\"))\n}\n\n";
    text += &daemon();
    text += "complete -F _tlctl tlctl\ncomplete -F _tl_init tl-init\n";
    text
}

/// `_tlctl_processes` lists the processes. `_tlctl_command_line N` completes a command line that begins after word N.
const FUNCTIONS: &str = "_tlctl_processes() {
    tlctl ps --json 2>/dev/null | grep -o '\"pid\":[0-9]*\\|\"name\":\"[^\"]*\"' | sed 's/^[^:]*://; s/\"//g'
}

_tlctl_command_line() {
    local current=${COMP_WORDS[COMP_CWORD]} kind=-f
    ((COMP_CWORD > $1 + 1)) || kind=-c
    COMPREPLY=($(compgen $kind -- \"$current\"))
}
";

fn daemon() -> String {
    let names: Vec<String> = OPTIONS.iter().map(|option| format!("--{}", option.name)).collect();
    let of = |value: &str| -> String {
        let named = OPTIONS.iter().filter(|option| option.value == value);
        named.map(|option| format!("--{}", option.name)).collect::<Vec<_>>().join(" | ")
    };
    let mut words = String::new();
    for option in OPTIONS.iter().filter(|option| !options::words(option).is_empty()) {
        let all = options::words(option).join(" ");
        words += &format!("    --{}) COMPREPLY=($(compgen -W '{all}' -- \"$current\")); return ;;\n", option.name);
    }
    format!(
        "_tl_init() {{\n\
         \x20   local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}\n\
         \x20   if [[ ${{COMP_WORDS[1]}} == ctl ]] && ((COMP_CWORD > 1)); then _tlctl 2; return; fi\n\
         \x20   local at\n\
         \x20   for ((at = 1; at < COMP_CWORD; at++)); do\n\
         \x20       if [[ ${{COMP_WORDS[at]}} == -- ]]; then _tlctl_command_line \"$at\"; return; fi\n\
         \x20   done\n\
         \x20   case $previous in\n\
         {words}\
         \x20   {}) COMPREPLY=($(compgen -f -- \"$current\")); return ;;\n\
         \x20   {}) COMPREPLY=($(compgen -d -- \"$current\")); return ;;\n\
         \x20   esac\n\
         \x20   COMPREPLY=($(compgen -W 'ctl {} --help --version' -- \"$current\"))\n\
         }}\n\n",
        of("FILE"),
        of("DIR"),
        names.join(" ")
    )
}

fn long_names(options: &[Opt]) -> String {
    options.iter().map(|option| format!("--{}", option.name)).collect::<Vec<_>>().join(" ")
}

/// The forms of the options that take the next word as their value, each once.
fn with_value<'a>(options: impl Iterator<Item = &'a Opt>) -> Vec<String> {
    let mut forms: Vec<String> = options.filter(|option| option.kind != Kind::Flag).flat_map(forms_of).collect();
    forms.sort();
    forms.dedup();
    forms
}

fn forms_of(option: &Opt) -> Vec<String> {
    let letter = option.letter.map(|letter| format!("-{letter}"));
    letter.into_iter().chain([format!("--{}", option.name)]).collect()
}

/// The beginnings of the values of `--limit`.
pub(crate) fn limits() -> [String; LIMITS.len()] {
    LIMITS.map(|(name, _)| format!("{name}="))
}

/// How the values of options are completed.
fn cases<'a>(options: impl Iterator<Item = &'a Opt>, indent: &str) -> String {
    let mut cases: Vec<(String, String)> = Vec::new();
    for option in options {
        let action = match option.kind {
            Kind::Flag => continue,
            Kind::File => "COMPREPLY=($(compgen -f -- \"$current\")); return".to_owned(),
            Kind::Directory => "COMPREPLY=($(compgen -d -- \"$current\")); return".to_owned(),
            Kind::OneOf(words) => format!("COMPREPLY=($(compgen -W '{}' -- \"$current\")); return", words.join(" ")),
            // The value follows the name without a space.
            Kind::Limit => format!(
                "compopt -o nospace 2>/dev/null; COMPREPLY=($(compgen -W '{}' -- \"$current\")); return",
                limits().join(" ")
            ),
            Kind::Text | Kind::Number | Kind::Seconds | Kind::Grace | Kind::Variable => "return".to_owned(),
        };
        for form in forms_of(option) {
            // `-n` of two commands: the first one counts.
            if !cases.iter().any(|(known, _)| *known == form) {
                cases.push((form, action.clone()));
            }
        }
    }
    cases.iter().map(|(form, action)| format!("{indent}{form}) {action} ;;\n")).collect()
}
