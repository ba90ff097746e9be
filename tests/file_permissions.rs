//! What each user may read and write through the file endpoints, entries of /proc included.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::harness::files::{files, get, list, names, put};
use crate::harness::{Options, Response, TIMEOUT, procfs, skip_without_root, start_daemon, wait_until_ok};

#[test]
fn file_requests_have_exactly_the_permissions_of_the_acting_user() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let denied = |response: Response| response.expect_error(403, "PERMISSION_DENIED", "");
    let pid_max = get(&daemon, "/proc/sys/kernel/pid_max", "").body;
    for user in ["", "&user=tl-user", "&user=12345", "&user=12345:12346"] {
        denied(get(&daemon, "/etc/shadow", user));
        denied(list(&daemon, "/root", user));
        denied(put(&daemon, "/etc/made-by-a-test", user, b"x"));
        denied(put(&daemon, "/etc/passwd", user, b"x"));
        denied(put(&daemon, "/no-such/directory/x", user, b"x"));
        denied(daemon.delete(&files("/etc/hostname", user)));
        denied(get(&daemon, "/proc/1/environ", user));
        // The kernel checks other ids for sysctls than for files. The write would not change the value.
        denied(put(&daemon, "/proc/sys/kernel/pid_max", user, &pid_max));
    }
    let shadow = fs::read("/etc/shadow").expect("read the file as root");
    for user in ["&user=root", "&user=0", "&user=0:0", "&user=0:12345"] {
        assert!(get(&daemon, "/etc/shadow", user).body == shadow, "{user}");
        assert_eq!(list(&daemon, "/root", user).status, 200);
    }
    put(&daemon, "/proc/sys/kernel/pid_max", "&user=root", &pid_max).expect(204);
    get(&daemon, "x", "&user=nobody-here").expect_error(400, "USER_NOT_FOUND", "nobody-here");
    for user in ["", ":", "1:", "root:root", "1:2:3", "4294967295", "99999999999"] {
        get(&daemon, "/etc/passwd", &format!("&user={user}")).expect_error(400, "INVALID_REQUEST", "user");
    }
    // A relative path is in the home of the default user; created files belong to the acting user.
    let scratch = daemon.scratch();
    for (user, owner) in [("root", "0 0"), ("12345", "12345 12345"), ("12345:12346", "12345 12346")] {
        put(&daemon, scratch.join(user), &format!("&user={user}"), b"x").expect(204);
        let made = daemon.run_sh(&format!("stat -c '%u %g %a' {}", scratch.join(user).display()));
        assert_eq!(made.stdout(), format!("{owner} 644"), "{user}");
    }
    assert_eq!(list(&daemon, ".", "&user=root").expect(200)["path"], "/home/tl-user/.", "the default user's home");
    put(&daemon, "by-root", "&user=root", b"x").expect(204);
    assert_eq!(daemon.run_sh("cd; stat -c '%U' by-root").stdout(), "root");
    // Only members of the group can read a file with mode 0640.
    let secret = scratch.join("secret");
    fs::write(&secret, "x").expect("write the file");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).expect("set the mode");
    std::os::unix::fs::chown(&secret, Some(0), Some(777)).expect("a group");
    denied(get(&daemon, &secret, "&user=12345"));
    assert_eq!(get(&daemon, &secret, "&user=12345:777").body, b"x");
    // Links of /proc are not followed. Afterwards the daemon still starts processes as the default user.
    for link in ["/proc/1/cwd/etc/passwd", "/proc/self/root/etc/passwd", "/proc/self/fd/1"] {
        get(&daemon, link, "").expect_error(400, "INVALID_REQUEST", link);
    }
    assert_eq!(daemon.run_sh("id -un").stdout(), "tl-user");
}

#[test]
fn files_of_proc_without_a_size_are_read_to_their_end() {
    let daemon = start_daemon();
    let memory = get(&daemon, "/proc/meminfo", "");
    assert!(memory.status == 200 && memory.body.starts_with(b"MemTotal:"));
    assert_eq!(get(&daemon, "/proc/sys/kernel/ostype", "").body, b"Linux\n");
    // The kernel adds and removes symbols at any time, those of BPF programs for example.
    wait_until_ok(TIMEOUT, || {
        let symbols = fs::read("/proc/kallsyms").unwrap_or_default().len();
        let read = get(&daemon, "/proc/kallsyms", "&user=root").body.len();
        if symbols == 0 || read == symbols { Ok(()) } else { Err(format!("{read} bytes of {symbols}")) }
    });
    assert_eq!(daemon.request("HEAD", &files("/proc/kallsyms", ""), None).body.len(), 0);
    assert!(names(&daemon, "/proc/1").contains(&"cmdline".to_owned()));
}

/// The kernel would let every thread of the daemon access them, whatever user it acts as.
#[test]
fn entries_of_the_daemon_in_proc_are_denied_to_every_user() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let denied = |response: Response| response.expect_error(403, "PERMISSION_DENIED", "");
    let scratch = daemon.scratch();
    symlink("/proc/self", scratch.join("link")).expect("create a symbolic link");
    for user in ["", "&user=tl-user", "&user=root"] {
        for name in ["maps", "smaps", "mem", "environ", "auxv", "stat", "io", "syscall", "oom_score_adj"] {
            for dir in ["/proc/self", "/proc/thread-self", "/proc/1", "/proc/1/task/1"] {
                let path = Path::new(dir).join(name);
                if fs::exists(path.as_path()).is_ok_and(|there| there) {
                    denied(get(&daemon, path, user));
                }
            }
        }
        denied(get(&daemon, scratch.join("link/maps"), user));
        for name in ["comm", "oom_score_adj", "mem", "status", "coredump_filter"] {
            for dir in [Path::new("/proc/self"), Path::new("/proc/thread-self"), &scratch.join("link")] {
                assert!(matches!(put(&daemon, dir.join(name), user, b"other").status, 400 | 403), "{name}");
            }
        }
        for dir in ["/proc/self/fd", "/proc/self/task", "/proc/thread-self/fd", "/proc/self/ns"] {
            denied(list(&daemon, dir, user));
        }
        // Entries that every process may read.
        for path in ["/proc/self/status", "/proc/1/cmdline", "/proc/mounts", "/proc/net/tcp", "/proc/thread-self/comm"]
        {
            assert_eq!(get(&daemon, path, user).status, 200, "{path}");
        }
        assert_eq!(list(&daemon, "/proc/self", user).status, 200);
    }
    let threads = procfs::threads(daemon.pid);
    assert!(threads.iter().all(|name| name != "other"), "{threads:?}");
    // Entries of another process are accessible to its user and to root.
    let own = daemon.sh("sleep 4780");
    let score = format!("/proc/{own}/oom_score_adj");
    for (user, value) in [("", "321\n"), ("&user=root", "123\n")] {
        put(&daemon, &score, user, value.as_bytes()).expect(204);
        assert_eq!(get(&daemon, &score, "").body, value.as_bytes());
    }
    let maps = format!("/proc/{own}/maps");
    assert_eq!(get(&daemon, &maps, "").status, 200);
    denied(get(&daemon, &maps, "&user=12345"));
}

/// In a /proc of the outer PID namespace, the daemon has other PIDs.
#[test]
fn entries_of_the_daemon_in_an_outer_proc_are_denied_to_every_user() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().outer_proc().start();
    let own = format!("/proc/{}", daemon.pid);
    let denied = |response: Response| response.expect_error(403, "PERMISSION_DENIED", "");
    assert_eq!(get(&daemon, "/proc/self/status", "").status, 200);
    for user in ["", "&user=root"] {
        for dir in ["/proc/self", "/proc/thread-self", &own, &format!("{own}/task/{}", daemon.pid)] {
            for name in ["maps", "environ", "auxv", "stat"] {
                denied(get(&daemon, Path::new(dir).join(name), user));
            }
            for name in ["fd", "ns"] {
                denied(list(&daemon, Path::new(dir).join(name), user));
            }
            denied(put(&daemon, Path::new(dir).join("comm"), user, b"other"));
        }
        // PID 1 of the outer /proc is another process.
        assert!(matches!(get(&daemon, "/proc/1/maps", user).status, 200 | 403));
    }
    let threads = procfs::threads(daemon.pid);
    assert!(threads.iter().all(|name| name != "other"), "{threads:?}");
    let maps = get(&daemon, format!("/proc/{}/maps", std::process::id()), "&user=root");
    assert_eq!(maps.status, 200, "root can read entries of other processes");
}
