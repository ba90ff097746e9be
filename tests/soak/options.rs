//! The command line of the soak.

/// What `make soak ARGS=…` can set.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seconds: u64,
    pub seed: u64,
    pub clients: u64,
    /// Operations of each client in one round.
    pub operations: u64,
    /// The first round: that of a violation, to repeat it.
    pub round: u64,
    /// Whether the log disk fills up: 0 or 1.
    pub full_disk: u64,
}

const USAGE: &str = "usage: soak [--seconds N] [--seed S] [--clients N] [--operations N] [--round N] [--full-disk 0|1]";

/// Options of the test harness of Rust, which `cargo test` passes to every test program.
const OF_CARGO: [&str; 8] =
    ["--nocapture", "--no-capture", "--quiet", "-q", "--exact", "--show-output", "--include-ignored", "--quick"];

impl Options {
    /// The options; none if `cargo test` was asked for other tests, or for a list.
    pub fn parse(args: impl Iterator<Item = String>) -> Option<Options> {
        let mut options =
            Options { seconds: 60, seed: random_seed(), clients: 8, operations: 120, round: 1, full_disk: 1 };
        let mut args = args;
        while let Some(arg) = args.next() {
            let field = match arg.as_str() {
                "--seconds" => &mut options.seconds,
                "--seed" => &mut options.seed,
                "--clients" => &mut options.clients,
                "--operations" => &mut options.operations,
                "--round" => &mut options.round,
                "--full-disk" => &mut options.full_disk,
                "--list" | "--ignored" => return None,
                "--skip" if args.next().is_some_and(|name| "soak".contains(&name)) => return None,
                "--skip" => continue,
                other if other.starts_with("--test-threads") => {
                    if other == "--test-threads" {
                        args.next();
                    }
                    continue;
                }
                other if OF_CARGO.contains(&other) => continue,
                filter if !filter.starts_with('-') && !"soak".contains(filter) => return None,
                filter if !filter.starts_with('-') => continue,
                other => exit_with(&format!("unknown option {other}")),
            };
            match args.next().and_then(|value| value.parse().ok()) {
                Some(value) => *field = value,
                None => exit_with(&format!("{arg}: not a number")),
            }
        }
        Some(options)
    }
}

fn exit_with(error: &str) -> ! {
    eprintln!("soak: {error}\n{USAGE}");
    std::process::exit(2)
}

/// The kernel's random bytes, by way of the keys of hash maps; short enough to be typed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() % 1_000_000_000
}
