//! Figures of archives: a tree of small files in both directions, beside `tar` and beside single requests.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bench::{Bench, milliseconds};
use crate::floors::drain;
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, procfs, start_daemon};
use crate::report::{Goal, Pair};

fn sh(dir: &Path, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(dir).stdout(Stdio::null()).status();
    assert!(status.expect("sh").success(), "{script}");
}

fn path(dir: &Path, name: &str) -> String {
    format!("/files/archive?path={}", dir.join(name).display())
}

fn upload(daemon: &Daemon, path: &str, archive: &[u8]) {
    let headers = format!("Content-Length: {}\r\n", archive.len());
    let head = daemon.request_head("PUT", path, &headers);
    let request = [head.as_bytes(), archive].concat();
    assert_eq!(ResponseStream::send(daemon.connect(), &request).status, 204);
}

/// 10,000 small files in one archive, down and up, beside `tar` to and from a pipe, and beside single requests.
pub fn archives(bench: &mut Bench) {
    let files = bench.count(10_000, 100);
    let daemon = start_daemon();
    let dir = daemon.scratch();
    for number in 0..files {
        let parent = dir.join(format!("tree/{:03}", number / 100));
        fs::create_dir_all(&parent).expect("create a directory");
        fs::write(parent.join(format!("file-{number}")), vec![b'x'; 100 + number * 7 % 4000]).expect("write a file");
    }
    let tree = path(&dir, "tree");
    let pack = || drain(daemon.open("GET", &tree, "", b"").expect_status(200));
    pack();
    let before = procfs::kilobytes(daemon.pid, "VmHWM");
    let down = bench.latencies(1, || milliseconds(pack), || milliseconds(|| sh(&dir, "tar -c -C tree . | cat")));
    let twice = Some(Goal::RatioAtMost(2.0));
    bench.report.median("download of an archive of 10,000 files", "ms", &down, "tar to a pipe", twice);
    let archive = daemon.open("GET", &tree, "", b"").expect_status(200).read_all();
    fs::write(dir.join("archive"), &archive).expect("keep the archive");
    let mut up = Pair::default();
    for round in 0..bench.options.rounds.min(5) {
        let to = path(&dir, &format!("ours-{round}"));
        up.ours.push(vec![milliseconds(|| upload(&daemon, &to, &archive))]);
        let script = format!("mkdir tar-{round}; cat archive | tar -x -C tar-{round}");
        up.floor.push(vec![milliseconds(|| sh(&dir, &script))]);
        sh(&dir, &format!("rm -r ours-{round} tar-{round}"));
    }
    bench.report.median("upload of an archive of 10,000 files", "ms", &up, "tar from a pipe", twice);
    let grown = procfs::kilobytes(daemon.pid, "VmHWM").saturating_sub(before) as f64 / 1024.0;
    bench.report.value("memory growth by both", "MiB", grown, Some(Goal::AtMost(4.0)));
    let all = || {
        for number in 0..files {
            daemon.get(&format!("/files?path={}/tree/{:03}/file-{number}", dir.display(), number / 100));
        }
    };
    let single = bench.latencies(1, || milliseconds(pack), || milliseconds(all));
    let tenth = Some(Goal::RatioAtMost(0.1));
    bench.report.median("download of 10,000 files in one archive", "ms", &single, "10,000 requests", tenth);
}
