//! The manual pages and the completions that `init/manual` writes: the programs that read them find nothing wrong, and
//! the shells complete commands, options and values.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs, dead_code)]

#[path = "../init/manual/main.rs"]
mod manual;

#[path = "harness/need.rs"]
mod need;

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;

use need::skip;

/// The files, written to a directory. In `bin` is a `tlctl` that lists two processes.
fn written() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    manual::write("1.2.3", dir.path()).unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    // Another process writes it: a child that another test forks meanwhile would inherit a file that is open for writing.
    let script = "#!/bin/sh\\necho '{\"processes\":[{\"pid\":305,\"managed\":{\"name\":\"web\"}},{\"pid\":17}]}'\\n";
    let write =
        format!("printf '%b' {} >\"$0\" && chmod 755 \"$0\" && cp -p \"$0\" \"${{0%tlctl}}tl-init\"", quoted(script));
    assert!(Command::new("sh").args(["-c", &write]).arg(bin.join("tlctl")).status().unwrap().success());
    dir
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Runs a program in the directory; none, and a test that is skipped, if it is not installed.
fn run(dir: &TempDir, program: &str, args: &[&str]) -> Option<Output> {
    let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    command.args(args).current_dir(dir.path()).env("PATH", path).env("HOME", dir.path()).env("LC_ALL", "C.UTF-8");
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip(program);
            None
        }
        result => Some(result.unwrap()),
    }
}

#[test]
fn manual_pages_have_no_errors_and_name_every_option() {
    let dir = written();
    for (page, words) in [
        ("man/tl-init.8", &["--listen", "--max-tasks", "tlctl(1)", "tl-init 1.2.3"][..]),
        ("man/tlctl.1", &["--follow", "PROCESS SIGNAL", "--token-file", "NO_COLOR"]),
        ("host/man/tl-host.8", &["--warm", "TL_HOST_STATE_DIR", "stop --all", "--default-image"]),
        ("man/init.conf.5", &["TL_INIT_LISTEN=ADDR:PORT", "TL_INIT_NO_AUTH=1", "TL_INIT_LOG_LIMIT=64M"]),
    ] {
        if let Some(output) = run(&dir, "man", &["--warnings", "-E", "UTF-8", "-l", page]) {
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{page}");
            let text = String::from_utf8_lossy(&output.stdout).replace('\u{2010}', "-");
            let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
            assert!(missing.is_empty(), "{page}: no {missing:?} in {text}");
        }
        if let Some(output) = run(&dir, "mandoc", &["-Tlint", "-Wwarning", page]) {
            let text = String::from_utf8_lossy(&output.stdout);
            // The pages have no date, so that two builds are equal.
            let problems: Vec<_> = text.lines().filter(|line| !line.contains("missing date")).collect();
            assert!(problems.is_empty(), "{problems:?}");
        }
    }
    let has_options = |page: &str, names: &[&str]| {
        let text = fs::read_to_string(dir.path().join(page)).unwrap();
        for option in names {
            let name = format!("\\fB\\-\\-{}\\fR", option.replace('-', "\\-"));
            assert!(text.contains(&name), "{page}: {name}");
        }
    };
    has_options("man/tl-init.8", &manual::options::OPTIONS.iter().map(|option| option.name).collect::<Vec<_>>());
    has_options(
        "host/man/tl-host.8",
        &manual::host_options::OPTIONS.iter().map(|option| option.name).collect::<Vec<_>>(),
    );
}

/// What bash completes for the words of a command line, the last of which is the one to complete.
fn bash(dir: &TempDir, words: &[&str]) -> Option<Vec<String>> {
    let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let script = format!(
        "source completions/tlctl.bash; source host/completions/tl-host.bash; COMP_WORDS=({}); COMP_CWORD={}; \
         ${{COMP_WORDS[0]/tl-init/_tl_init}} >/dev/null; :",
        line.join(" "),
        words.len() - 1
    );
    let function = format!("_{}", words[0].replace('-', "_"));
    let script = script.replace(
        "${COMP_WORDS[0]/tl-init/_tl_init} >/dev/null; :",
        &format!("{function}; printf '%s\\n' \"${{COMPREPLY[@]}}\""),
    );
    let output = run(dir, "bash", &["--norc", "-c", &script])?;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    Some(sorted(&output))
}

/// What fish completes for a command line.
fn fish(dir: &TempDir, words: &[&str]) -> Option<Vec<String>> {
    let script = format!(
        "source completions/tlctl.fish; source host/completions/tl-host.fish; complete -C {}",
        quoted(&words.join(" "))
    );
    let output = run(dir, "fish", &["--no-config", "-c", &script])?;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    let lines = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.split('\t').next().unwrap().to_owned())
        .collect::<Vec<_>>()
        .join("\n");
    Some(sorted(&Output { stdout: lines.into_bytes(), ..output }))
}

fn sorted(output: &Output) -> Vec<String> {
    let mut words: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    words.sort();
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn bash_and_fish_complete_commands_options_values_and_processes() {
    let dir = written();
    for complete in [bash, fish] {
        for (words, right) in [
            (&["tlctl", "st"][..], &["start", "status", "stop"][..]),
            (&["tlctl", "--json", "bo"], &["boot"]),
            (&["tlctl", "logs", "--fo"], &["--follow"]),
            (&["tlctl", "logs", "--stream", "std"], &["stderr", "stdout"]),
            (&["tlctl", "start", "--restart", "al"], &["always"]),
            (&["tlctl", "run", "--limit", "cpu"], &["cpu-weight=", "cpus="]),
            (&["tlctl", "logs", ""], &["17", "305", "web"]),
            (&["tlctl", "stop", "w"], &["web"]),
            (&["tlctl", "ps", "--to"], &["--token-file"]),
            (&["tlctl", "shutdown", "--re"], &["--reboot"]),
            (&["tl-init", "--log-f"], &["--log-format"]),
            (&["tl-init", "ct"], &["ctl"]),
            (&["tl-init", "--log-level", "t"], &["trace"]),
            (&["tl-host", "do"], &["doctor"]),
            (&["tl-host", "--log-f"], &["--log-format"]),
            (&["tl-host", "--log-format", "j"], &["json"]),
        ] {
            if let Some(found) = complete(&dir, words) {
                assert_eq!(found, right, "{words:?}");
            }
        }
    }
    for (words, right) in [
        (&["tlctl", "signal", "web", "TE"][..], &["TERM"][..]),
        (&["tlctl", "-n", "5", "sh"], &["shutdown"]),
        (&["tl-init", "ctl", "sh"], &["shutdown"]),
        (&["tl-init", "ctl", "wait", "3"], &["305"]),
        (&["tlctl", "--token-file", "man/tl-"], &["man/tl-init.8"]),
        (&["tl-init", "--log-dir", "man"], &["man"]),
        (&["tl-host", "--state-dir", "man"], &["man"]),
        (&["tl-host", "import", "man/tl-"], &["man/tl-init.8"]),
        (&["tl-host", "import", "x", "--na"], &["--name"]),
        // After `--`, and after the first word of a command line, the words are those of the command.
        (&["tlctl", "run", "--", "tlct"], &["tlctl"]),
        (&["tlctl", "run", "cat", "--js"], &[]),
        (&["tlctl", "stop", "--", "w"], &["web"]),
        (&["tlctl", "run", "--", "cat", "man/tl-"], &["man/tl-init.8"]),
        (&["tl-init", "--", "cat", "--log"], &[]),
    ] {
        if let Some(found) = bash(&dir, words) {
            assert_eq!(found, right, "{words:?}");
        }
    }
}

#[test]
fn zsh_completes_commands_options_values_and_processes() {
    let dir = written();
    // A zsh on a terminal of its own. Each step waits for what the one before shows: with more input pending, zsh does
    // not complete. Tab also prints the completed line, because what zsh itself writes are only the changes.
    let driver = r#"zmodload zsh/zpty
        zpty z zsh -f -i
        zpty -w z "PS1='ready> '; fpath=($PWD/completions $PWD/host/completions \$fpath); autoload -Uz compinit; compinit -u -D"
        zpty -w z 'tab() { zle complete-word; print -r -- "<${BUFFER% }>" }; zle -N tab; bindkey "^I" tab; echo begin-$((1+1))'
        zpty -r z text '*begin-2*ready> *'
        zpty -n -w z "$1"$'\t'
        zpty -r z text "*<$2>*"
        print -r -- "completed"
        zpty -d z"#;
    for (line, right) in [
        ("tlctl bo", "tlctl boot"),
        ("tlctl logs --fo", "tlctl logs --follow"),
        ("tlctl logs --stream stdo", "tlctl logs --stream stdout"),
        ("tlctl start --limit open", "tlctl start --limit open-files="),
        ("tlctl stop w", "tlctl stop web"),
        ("tlctl signal web TE", "tlctl signal web TERM"),
        ("tl-init --log-f", "tl-init --log-format"),
        ("tl-init ctl shut", "tl-init ctl shutdown"),
        ("tl-host --log-f", "tl-host --log-format"),
        ("tl-host doc", "tl-host doctor"),
    ] {
        let Some(output) = run(&dir, "timeout", &["20", "zsh", "-f", "-c", driver, "zsh", line, right]) else { return };
        if output.status.code() == Some(127) {
            return skip("zsh");
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, "completed\n", "{line}");
    }
}
