//! What must hold for every content of `init.conf` and of an environment file: the fuzz target `init_conf` (`fuzz/`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::time::Duration;

use crate::args::{Invocation, RawConfig, parse};
use crate::config::Config;
use crate::files::parse_pairs;
use crate::options::OPTIONS;

/// Every line is a pair, reported, or one to skip. The pairs, written again, are read as the same. The configuration is
/// valid, whatever the values are, and is the strict one if there is nothing to report.
pub(crate) fn init_conf(input: &[u8]) {
    let (pairs, problem) = parse_pairs(input);
    check_lines(input, &pairs, problem.as_deref());
    let mut text = Vec::new();
    for (key, value) in &pairs {
        assert!(!key.is_empty() && !key.contains(|letter: char| letter.is_whitespace() || "=\0".contains(letter)));
        assert!(!value.contains(['\n', '\0']), "{value:?}");
        text.extend(format!("export {key}={value}\r\n").into_bytes());
    }
    assert_eq!(parse_pairs(&text), (pairs.clone(), None));
    let Ok(Invocation::Run(mut raw)) = parse([], []) else { panic!("no arguments are valid") };
    raw.add_conf(pairs.clone());
    check_config(&raw, &pairs);
}

/// Reads the lines in a simple way.
fn check_lines(input: &[u8], pairs: &[(String, String)], problem: Option<&str>) {
    let input = input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input);
    let lines = input.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")).collect();
    let broken = match problem {
        None => 0,
        Some(problem) if problem.starts_with("line ") => 1,
        Some(problem) => problem.split(' ').next().unwrap().parse().unwrap(),
    };
    assert_eq!(lines.len(), pairs.len() + broken, "{pairs:?} {problem:?}");
    let has_pair = |line: &&&[u8]| line.contains(&b'=') && !line.starts_with(b"=") && std::str::from_utf8(line).is_ok();
    assert!(pairs.len() <= lines.iter().filter(has_pair).count());
}

fn check_config(raw: &RawConfig, pairs: &[(String, String)]) {
    let (config, problems) = raw.resolve_leniently();
    match raw.resolve() {
        Ok(strict) => assert!(strict == config && problems.is_empty(), "{problems:?}"),
        Err(first) => assert_eq!(problems.first(), Some(&first)),
    }
    assert!(
        problems.len() <= OPTIONS.len()
            && problems.iter().all(|problem| problem.contains(": ") || problem.contains(" and "))
    );
    check_values(&config);
    let given: HashMap<&str, &str> = pairs.iter().rev().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let known = |name: &str| OPTIONS.iter().any(|option| crate::options::variable(option.name) == name);
    for (name, text) in &given {
        assert_eq!(known(name), !raw.unknown().iter().any(|other| other == name) && *name != "TL_INIT_URL", "{name}");
        if *name == "TL_INIT_LISTEN" && problems.is_empty() {
            assert_eq!(text.parse(), Ok(config.listen));
        }
    }
    assert_eq!(raw.has_command(), given.contains_key("TL_INIT_COMMAND"));
}

fn check_values(config: &Config) {
    let day = Duration::from_secs(86_400);
    assert!(!config.no_auth || config.token_file.is_none());
    assert!(config.log_limit > 0 && config.log_total != Some(0) && config.max_tasks != Some(0));
    assert!(config.max_processes.min(config.max_sessions).min(config.max_connections) > 0);
    assert!(config.max_body > 0 && config.max_head > 0);
    assert!(config.shutdown_grace <= day);
    for time in [config.session_idle, config.head_time, config.idle_time] {
        assert!(!time.is_zero() && time <= day, "{time:?}");
    }
    for dir in [&config.log_dir, &config.run_dir, &config.config_dir] {
        assert!(!dir.as_os_str().is_empty());
    }
    assert!(
        config.command.iter().all(|word| !word.contains('\0'))
            && config.command.first().is_none_or(|word| !word.is_empty())
    );
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_seed_holds() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/init_conf");
        for file in fs::read_dir(seeds).unwrap().map(|file| file.unwrap().path()) {
            println!("{}", file.display());
            init_conf(&fs::read(&file).unwrap());
        }
    }
}
