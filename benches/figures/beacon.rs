//! Small static programs that are compiled for the benchmarks: one that does nothing, and one that reports that it runs.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

/// Ends at once.
const NOTHING: &str = "int main(void) { return 0; }";

/// Sends a byte to the datagram socket that BEACON or its first argument names, then waits for a signal.
const BEACON: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(int count, char **args) {
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    const char *path = getenv("BEACON");
    if (!path) path = count > 1 ? args[1] : "";
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (sendto(sender, ".", 1, 0, (struct sockaddr *)&address, sizeof address) != 1) return 1;
    close(sender);
    for (;;) pause();
}
"#;

/// The compiled programs, and where the beacon reports.
pub struct Programs {
    dir: TempDir,
    pub nothing: PathBuf,
    pub beacon: PathBuf,
}

/// Where beacons report that they run.
pub struct Reports {
    socket: UnixDatagram,
    pub path: PathBuf,
}

impl Programs {
    pub fn compile() -> Programs {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o755);
        let dir = tempfile::Builder::new().prefix("tl-bench.").permissions(mode).tempdir().expect("a directory");
        let compile = |name: &str, source: &str| {
            let (code, program) = (dir.path().join(format!("{name}.c")), dir.path().join(name));
            std::fs::write(&code, source).expect("write the source");
            let status = Command::new("cc").args(["-static", "-O2", "-o"]).arg(&program).arg(&code).status();
            assert!(status.expect("run cc").success(), "compile {name}");
            program
        };
        let (nothing, beacon) = (compile("nothing", NOTHING), compile("beacon", BEACON));
        Programs { dir, nothing, beacon }
    }

    /// A new directory for files of the benchmarks, which every user can enter.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).expect("create a directory");
        path
    }

    /// A new socket for the reports of beacons. Any user may send to it.
    pub fn reports(&self, name: &str) -> Reports {
        Reports::at(&self.dir.path().join(name))
    }
}

impl Reports {
    fn at(path: &Path) -> Reports {
        use std::os::unix::fs::PermissionsExt;
        let socket = UnixDatagram::bind(path).expect("bind the socket");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set the timeout");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("let everybody send");
        Reports { socket, path: path.to_owned() }
    }

    /// Waits until a beacon reports.
    pub fn wait(&self) {
        loop {
            match self.socket.recv(&mut [0; 8]) {
                // This program was stopped and continued.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return assert_eq!(result.expect("a report in time"), 1),
            }
        }
    }
}
