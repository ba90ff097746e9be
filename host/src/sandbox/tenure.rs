//! Whether the container of a sandbox still has its address.
//!
//! After a container has ended, the engine may give its address, or its port on 127.0.0.1, to the next one. The monitor
//! learns of the end from an event of the engine: somewhat later, and not at all while the engine is gone. Until then a
//! connection to the address can lead to another sandbox. So whoever has connected asks here before sending anything.
//!
//! A container keeps its address as long as its PID 1 has not ended. If that still lives after a connection was accepted,
//! the connection leads to it, or to nobody once it has ended: an address that is given to another container does not
//! take a connection along. A descriptor of that process (pidfd) tells this with one system call and without the engine,
//! and cannot be deceived from within a sandbox, as an answer that proves the knowledge of the token could.
//!
//! Where the process cannot be seen, because the engine is on another machine or has a PID namespace of its own, the
//! engine is asked whether the container runs and has the address.

use std::fs;
use std::time::Instant;

use tl_os::pidfd::PidFd;

use crate::engine::Container;

/// A container, and the process whose end frees its address.
#[derive(Debug)]
pub(crate) struct Tenure {
    /// The id of the container.
    pub(crate) container: String,
    /// None if the process cannot be seen.
    process: Option<PidFd>,
}

impl Tenure {
    /// Of a container that runs. The token of the sandbox `id` is mounted at `token_path` in it.
    pub(crate) fn of(container: &Container, id: &str, token_path: &str) -> Tenure {
        Tenure { container: container.id.clone(), process: open(container, id, token_path) }
    }

    /// Whether PID 1 of the container lives. None if it cannot be seen.
    pub(crate) fn goes_on(&self) -> Option<bool> {
        // An error of poll(2) tells nothing: then it is as if the process had ended.
        let process = self.process.as_ref()?;
        Some(process.wait_end(Instant::now()).is_ok_and(|has_ended| !has_ended))
    }
}

/// PID 1 of the container, if this machine shows it by the PID that the engine has told.
fn open(container: &Container, id: &str, token_path: &str) -> Option<PidFd> {
    let pid = container.pid?;
    let process = PidFd::open(pid).ok()?;
    // The PID may belong to another process: by now, or because the engine counts in a PID namespace of its own. Only the
    // container of this sandbox has its token mounted.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
    let is_it = has_token(&mounts, id, token_path);
    if !is_it {
        log::debug!(
            "PID {pid} is not that of the container of sandbox {id}: the engine is asked before each connection"
        );
    }
    is_it.then_some(process)
}

fn has_token(mountinfo: &str, id: &str, token_path: &str) -> bool {
    let ending = format!("/tokens/{id}");
    let is_token = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        fields.next().is_some_and(|root| root.ends_with(&ending)) && fields.next() == Some(token_path)
    };
    mountinfo.lines().any(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ContainerState;

    const PATH: &str = "/run/tl-host/token";

    #[test]
    fn a_process_is_known_by_the_token_that_is_mounted_for_it() {
        let mounts = "24 1 0:22 / / rw - overlay overlay rw\n\
                      31 24 254:0 /var/lib/tl-host/tokens/abc /run/tl-host/token ro,relatime - ext4 /dev/vda rw\n";
        assert!(has_token(mounts, "abc", PATH));
        assert!(!has_token(mounts, "bc", PATH) && !has_token(mounts, "abcd", PATH) && !has_token("", "abc", PATH));
        assert!(!has_token(mounts, "abc", "/tmp/token"));
    }

    /// Nothing of this process is mounted as a token, so its PID is not taken for that of a container.
    #[test]
    fn a_pid_of_another_process_is_not_used() {
        let id = "a".repeat(21);
        let container = Container {
            id: "c".to_owned(),
            name: "tl-a".to_owned(),
            state: ContainerState::Running,
            pid: i32::try_from(std::process::id()).ok(),
            exit_code: None,
            is_oom_killed: false,
            address: None,
            published_at: None,
            labels: Vec::new(),
        };
        assert!(Tenure::of(&container, &id, PATH).process.is_none());
        assert!(Tenure::of(&Container { pid: None, ..container }, &id, PATH).process.is_none());
    }
}
