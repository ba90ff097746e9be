//! What tests need of the machine, and what happens where the machine lacks it.

/// What a machine that must run all tests may lack.
const MAY_LACK: &str = include_str!("../may-lack");

/// Prints that the current test is skipped because the machine lacks `what`.
///
/// # Panics
/// If TL_TEST_ALL is set, except for what `tests/may-lack` names.
pub fn skip(what: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let may_lack = MAY_LACK.lines().any(|line| line.split_once(": ").is_some_and(|(name, _)| name == what));
    let must_run = std::env::var_os("TL_TEST_ALL").is_some_and(|value| !value.is_empty());
    assert!(may_lack || !must_run, "TL_TEST_ALL is set, but {test} needs {what}");
    eprintln!("{test}: skipped, it needs {what}");
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the current test must be skipped because it needs root; see [`skip`].
pub fn skip_without_root() -> bool {
    if !is_root() {
        skip("root");
    }
    !is_root()
}
