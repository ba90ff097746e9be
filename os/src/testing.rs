//! What the tests of this crate share.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Deadline for anything that a test waits for; long enough for a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Calls `condition` until it is true; fails with the description `what` after [`LONG`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < end, "not within {LONG:?}: {what}");
        sleep(Duration::from_millis(1));
    }
}

/// Set where one test runs in a process of its own.
const ALONE: &str = "TL_TEST_ALONE";

/// Whether the test runs in a process of its own. If not, runs it in one, and returns false once it has passed there.
/// Other tests have children too, and SIGCHLD is sent to the whole process.
#[track_caller]
pub(crate) fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([test, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}\n{err}", output.status);
    false
}
