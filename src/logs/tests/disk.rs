//! The directory, its lock, and failing disks.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;

use super::*;

const LIMITS: LogLimits = LogLimits { per_unit: 64 * MIB, total: 256 * MIB };

#[test]
fn a_directory_with_other_files_or_in_use_is_refused_and_leftovers_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("a/logs");
    fs::create_dir_all(&logs).unwrap();
    fs::set_permissions(&logs, fs::Permissions::from_mode(0o755)).unwrap();
    for (name, ours) in [("17.3", true), ("0.0", true), ("notes.txt", false), ("17", false), ("1.2.3", false)] {
        fs::write(logs.join(name), name).unwrap();
        assert_eq!(ours, name.split('.').count() == 2 && !name.contains('n'));
    }
    fs::create_dir(logs.join("5.5")).unwrap();
    let foreign = LogStore::open(&logs, LIMITS).unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::DirectoryNotEmpty, "a directory with other files is not used");
    assert_eq!(fs::metadata(&logs).unwrap().permissions().mode() & 0o7777, 0o755);
    // With a lock file, it is the directory of an earlier daemon.
    fs::write(logs.join("lock"), "").unwrap();
    let store = LogStore::open(&logs, LIMITS).unwrap();
    assert_eq!(fs::metadata(&logs).unwrap().permissions().mode() & 0o7777, 0o700);
    let mut left: Vec<_> =
        fs::read_dir(&logs).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["1.2.3", "17", "5.5", "lock", "notes.txt"]);

    let second = LogStore::open(&logs, LIMITS).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::ResourceBusy);
    assert!(second.to_string().contains("in use by another daemon"), "{second}");
    drop(store);
    drop(LogStore::open(&logs, LIMITS).unwrap());
}

#[test]
fn a_closed_log_reopens_its_file_for_the_next_output() {
    let (dir, log) = log();
    log.append(1, OUT, b"one\n");
    log.finish_now(end(1));
    log.close_file();
    log.append(2, OUT, b"two\n");
    log.close_file();
    assert_eq!(texts(log.lines(View::Stdout, None)), ["one", "two"]);
    assert_eq!(fs::read_dir(dir.path().join("logs")).unwrap().count(), 2, "the lock and one segment");
}

#[test]
fn output_after_a_lost_segment_is_read_by_followers_at_the_end() {
    let (dir, store) = store(64 * MIB, 256 * MIB, |disk| disk.segment = 100);
    let log = store.create(UnitId(1));
    log.append(1, OUT, b"first\n");
    log.append(2, OUT, &[&[b'x'; 70][..], b"\n"].concat());
    let mut follower = log.follow(View::Stdout, StartAt::Beginning, waker());
    assert_eq!(drain(&mut follower).len(), 2);
    log.close_file();
    fs::remove_file(dir.path().join("logs/1.1")).unwrap();
    assert_eq!(texts(log.lines(View::Stdout, None)), ["first"], "the second segment was dropped");
    // The first segment has room for this line, but the line does not follow it.
    log.append(3, OUT, b"later\n");
    assert_eq!(texts(lines_of(&drain(&mut follower))), ["later"]);
    let items = follow(&log, View::Stdout, StartAt::Beginning);
    assert!(matches!(items[1], Item::Gap { lost_bytes: 71, .. }), "{items:?}");
    assert_eq!(follow(&log, View::Stdout, StartAt::After(cursor(&items[1]))), items[2..]);
}

/// Replaces the directory by a file, so that no file can be created in it.
fn lose(dir: &TempDir) {
    fs::remove_dir_all(dir.path().join("logs")).unwrap();
    fs::write(dir.path().join("logs"), "").unwrap();
}

/// Appends numbered lines of 16 bytes.
fn flood(log: &OutputLog, lines: std::ops::Range<u64>) {
    for number in lines {
        log.append(number, OUT, format!("line {number:010}\n").as_bytes());
    }
}

/// Checks that the lines are whole, in order, end with `last`, and have at least `at_least` bytes together.
fn check_kept(log: &Arc<OutputLog>, last: u64, at_least: usize) {
    let lines = texts(log.lines(View::Stdout, None));
    let whole: Vec<u64> = lines.iter().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
    assert!(whole.is_sorted() && whole.len() == lines.len());
    assert_eq!(whole.last(), Some(&last));
    assert!(whole.len() * 16 >= at_least, "{} lines", whole.len());
}

#[test]
fn without_a_directory_the_last_output_stays_in_memory() {
    let (dir, log) = log();
    log.append(0, OUT, b"line 0000000000\n");
    let mut follower = log.follow(View::Stdout, StartAt::Beginning, waker());
    assert_eq!(drain(&mut follower).len(), 1);
    log.close_file();
    lose(&dir);
    log.append(1, OUT, b"line 0000000001\n");
    assert!(log.truncated());
    assert_eq!(texts(lines_of(&drain(&mut follower))), ["line 0000000001"]);
    flood(&log, 2..20_000);
    check_kept(&log, 19_999, 60_000);
    let end = log.snapshot().end;
    let items = drain(&mut follower);
    assert!(matches!(items[0], Item::Gap { lost_bytes, .. } if lost_bytes > 200_000), "{:?}", items[0]);

    // Once the directory can be created again, it is used after at most another 64 KiB.
    fs::remove_file(dir.path().join("logs")).unwrap();
    flood(&log, 20_000..26_000);
    check_kept(&log, 25_999, 96_000);
    let kept = fs::read_dir(dir.path().join("logs")).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    let kept: u64 = kept.sum();
    assert!(kept > 90_000, "{kept} bytes are on disk");
    let more = lines_of(&drain(&mut follower));
    assert_eq!(more.len(), 6000, "a follower that keeps up loses nothing");
    assert!(log.snapshot().end.at > end.at);
}

#[test]
fn memory_is_bounded_for_tiny_records_as_well() {
    let (dir, log) = log();
    lose(&dir);
    for _ in 0..200_000 {
        log.append(1, OUT, b"\n");
    }
    let kept = raw(&log, View::Stdout).len();
    assert!((64 * 1024..72 * 1024).contains(&kept), "{kept}");
    assert!(log.memory() < 5 * 64 * 1024, "{}", log.memory());
    log.finish_now(end(1));
    assert!(matches!(follow(&log, View::Stdout, StartAt::Beginning).last(), Some(Item::End(..))));
}

#[test]
fn memory_keeps_64_kib_of_whole_lines_whatever_their_length() {
    let mut random = Random(64);
    for longest in [1, 5, 100, 4000, 60_000] {
        let (dir, log) = log();
        lose(&dir);
        let (mut all, mut chunk) = (Vec::new(), Vec::new());
        let mut due = 200_000;
        while all.len() < 400_000 {
            chunk.resize(random.below(longest), b'x');
            chunk.push(b'\n');
            // Records with parts of lines, and records with several lines.
            let at = random.below(chunk.len());
            let rest = chunk.split_off(at);
            log.append(all.len() as u64, OUT, &chunk);
            all.append(&mut chunk);
            chunk = rest;
            if random.below(2) == 0 {
                log.append(all.len() as u64, OUT, &chunk);
                all.append(&mut chunk);
            }
            if all.len() > due {
                due += 1777;
                let kept = raw(&log, View::Stdout);
                assert!((64 * 1024..=136 * 1024).contains(&kept.len()), "{} of lines up to {longest}", kept.len());
                assert!(all.ends_with(&kept) && all[..all.len() - kept.len()].ends_with(b"\n"));
                assert!(log.memory() < 6 * 64 * 1024, "{}", log.memory());
            }
        }
    }
    // Of a line that is longer than that, the last part is kept.
    let (dir, log) = log();
    lose(&dir);
    (0..1000).for_each(|_| log.append(1, OUT, &[b'x'; 1000]));
    let kept = raw(&log, View::Stdout).len();
    assert!((64 * 1024..=136 * 1024).contains(&kept), "{kept}");
}

#[test]
fn a_directory_or_lock_of_another_user_is_rejected() {
    let refused = |logs: &std::path::Path, kind: ErrorKind, why: &str| {
        let error = LogStore::open(logs, LIMITS).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(why) && error.to_string().contains("log directory"), "{error}");
    };
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let chown = |path: &std::path::Path| std::os::unix::fs::lchown(path, Some(4242), Some(4242)).unwrap();
    // A lock that is not a regular file: a symlink that would create a file elsewhere, and a FIFO without a reader.
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&logs).unwrap();
    std::os::unix::fs::symlink(&elsewhere, logs.join("lock")).unwrap();
    refused(&logs, ErrorKind::InvalidInput, "`lock` in it is not a regular file");
    assert!(!elsewhere.exists());
    fs::remove_file(logs.join("lock")).unwrap();
    nix::unistd::mkfifo(&logs.join("lock"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&logs, ErrorKind::InvalidInput, "`lock` in it is not a regular file");
    fs::remove_file(logs.join("lock")).unwrap();
    fs::write(&elsewhere, "").unwrap();
    refused(&elsewhere, ErrorKind::NotADirectory, "it is not a directory");
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("partly skipped: chown needs root");
    }
    fs::write(logs.join("lock"), "").unwrap();
    chown(&logs.join("lock"));
    refused(&logs, ErrorKind::PermissionDenied, "`lock` in it belongs to the user 4242");
    // The directory itself, with and without a lock.
    for with_lock in [true, false] {
        fs::remove_dir_all(&logs).unwrap();
        fs::create_dir(&logs).unwrap();
        if with_lock {
            fs::write(logs.join("lock"), "").unwrap();
        }
        fs::set_permissions(&logs, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&logs);
        refused(&logs, ErrorKind::PermissionDenied, "it belongs to the user 4242, and the daemon runs as 0");
        assert_eq!(fs::metadata(&logs).unwrap().permissions().mode() & 0o7777, 0o755);
    }
    // A symlink is followed only if it belongs to the daemon's user or to root.
    let link = dir.path().join("link");
    let own = dir.path().join("own");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::symlink(&own, &link).unwrap();
    drop(LogStore::open(&link, LIMITS).unwrap());
    chown(&link);
    refused(&link, ErrorKind::PermissionDenied, "it is a symlink that belongs to the user 4242");
    // Files of other users with the names of segments are removed without following symlinks.
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, own.join("1.0")).unwrap();
    let store = LogStore::open(&own, LIMITS).unwrap();
    store.create(UnitId(1)).append(1, OUT, b"line\n");
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn a_log_survives_the_removal_of_its_directory() {
    let remove = |logs: &std::path::Path| fs::remove_dir_all(logs).unwrap();
    let remove_files = |logs: &std::path::Path| {
        fs::read_dir(logs).unwrap().flatten().for_each(|file| fs::remove_file(file.path()).unwrap());
    };
    let move_away = |logs: &std::path::Path| fs::rename(logs, logs.with_extension("old")).unwrap();
    let another = |logs: &std::path::Path| {
        fs::rename(logs, logs.with_extension("old")).unwrap();
        fs::create_dir(logs).unwrap();
    };
    let with_parents = |logs: &std::path::Path| fs::remove_dir_all(logs.parent().unwrap()).unwrap();
    let harms: [&dyn Fn(&std::path::Path); 5] = [&remove, &remove_files, &move_away, &another, &with_parents];
    for (number, harm) in harms.into_iter().enumerate() {
        for continues in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let logs = dir.path().join("a/logs");
            let store = LogStore::open(&logs, LIMITS).unwrap();
            let log = store.create(UnitId(1));
            let mut follower = log.follow(View::Stdout, StartAt::Beginning, waker());
            flood(&log, 0..1000);
            assert_eq!(drain(&mut follower).len(), 1000);
            harm(&logs);
            // Written while the directory is missing, or not at all.
            let last = if continues { 2000 } else { 1000 };
            flood(&log, 1000..last);
            log.finish_now(end(1));
            log.close_file();
            let lines = texts(log.lines(View::Stdout, None));
            assert!(lines.iter().cloned().eq((0..last).map(|line| format!("line {line:010}"))), "{number} {continues}");
            assert_eq!(lines_of(&drain(&mut follower)).len() as u64, last - 1000, "{number} {continues}");
            assert!(log.truncated(), "{number} {continues}");
            // The directory is created as at the start, with its lock.
            let other = store.create(UnitId(2));
            other.append(1, OUT, b"other\n");
            assert!(logs.join("2.0").exists(), "{number} {continues}");
            assert_eq!(fs::metadata(&logs).unwrap().permissions().mode() & 0o7777, 0o700);
            assert_eq!(LogStore::open(&logs, LIMITS).unwrap_err().kind(), ErrorKind::ResourceBusy, "{number}");
            assert_eq!(texts(other.lines(View::Stdout, None)), ["other"]);
            drop((log, follower, other));
            assert_eq!(store.total_bytes(), 0);
        }
    }
}

#[test]
fn a_segment_that_cannot_be_copied_stays_in_memory_or_is_a_gap() {
    // Short enough for memory, too long for memory, and too long to be copied.
    for (lines, kept) in [(1000_u64, 1000_u64), (10_000, 0), (200_000, 0)] {
        let (dir, log) = log();
        flood(&log, 0..lines);
        let mut follower = log.follow(View::Stdout, StartAt::Tail(1), waker());
        assert_eq!(drain(&mut follower).len(), 1);
        lose(&dir);
        flood(&log, lines..lines + 100);
        assert_eq!(lines_of(&drain(&mut follower)).len(), 100);
        let left = texts(log.lines(View::Stdout, None));
        let expected = (lines - kept..lines + 100).map(|line| format!("line {line:010}"));
        assert!(left.iter().cloned().eq(expected), "{lines}: {}", left.len());
        // Once the directory can be created, the log is on disk again.
        fs::remove_file(dir.path().join("logs")).unwrap();
        log.finish_now(end(1));
        log.close_file();
        assert_eq!(texts(log.lines(View::Stdout, None)), left, "{lines}");
        assert_eq!(log.memory(), 0, "{lines}");
    }
    // With a directory, a segment that is too long becomes a gap, and later output is kept.
    let (dir, log) = log();
    flood(&log, 0..200_000);
    fs::remove_dir_all(dir.path().join("logs")).unwrap();
    flood(&log, 200_000..200_100);
    let items = follow(&log, View::Stdout, StartAt::Beginning);
    assert!(matches!(items[0], Item::Gap { lost_bytes, .. } if lost_bytes == 200_000 * 16), "{:?}", items[0]);
    assert_eq!(lines_of(&items).len(), 100);
}

/// A mounted file system of limited size; mounting needs root.
struct Small(TempDir);

impl Small {
    fn mount(bytes: u64) -> Option<Small> {
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        let flags = MsFlags::empty();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(options.as_str())).ok()?;
        Some(Small(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_loses_old_output_only() {
    let Some(disk) = Small::mount(600 * 1024) else {
        eprintln!("skipped: mounting a file system needs root");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 400 * 1024]).unwrap();
    let store = LogStore::open(&disk.0.path().join("logs"), LIMITS).unwrap();
    let log = store.create(UnitId(1));
    let mut follower = log.follow(View::Stdout, StartAt::Beginning, waker());
    let mut followed = Vec::new();
    // Records of a size at which the last one is written only partly.
    let mut text = String::new();
    for number in 0..60_000 {
        text.push_str(&format!("line {number:010}\n"));
        if text.len() >= 5000 {
            log.append(1, OUT, text.as_bytes());
            text.clear();
            followed.extend(lines_of(&drain(&mut follower)));
        }
    }
    assert!(log.truncated());
    assert!(follower.try_next().is_none());
    for (number, line) in followed.iter().enumerate() {
        assert_eq!(line.text, format!("line {number:010}"), "a follower that keeps up loses nothing");
    }
    let count = followed.len() as u64;
    assert!(count > 59_600);
    check_kept(&log, count - 1, 150 * 1024);
    fs::remove_file(&ballast).unwrap();
    flood(&log, count..count + 5000);
    check_kept(&log, count + 4999, 200 * 1024);
    assert_eq!(lines_of(&drain(&mut follower)).len(), 5000);
    let on_disk = store.total_bytes();
    flood(&log, count + 5000..count + 5010);
    assert!(store.total_bytes() > on_disk, "output is written to files again");
}

#[test]
fn a_file_that_was_tampered_with_is_a_gap() {
    let damage: [fn(&std::path::Path); 5] = [
        |file| fs::remove_file(file).unwrap(),
        |file| fs::OpenOptions::new().write(true).open(file).unwrap().set_len(0).unwrap(),
        |file| fs::OpenOptions::new().write(true).open(file).unwrap().set_len(1003).unwrap(),
        |file| fs::write(file, vec![0xff; 4000]).unwrap(),
        |file| fs::write(file, b"tlr\x01\xff\xff\xff\xff01234567".repeat(300)).unwrap(),
    ];
    for harm in damage {
        for (segment, closed) in [(0, false), (1, true), (2, false), (2, true)] {
            let (dir, store) = store(64 * MIB, 256 * MIB, |disk| disk.segment = 4000);
            let log = store.create(UnitId(1));
            flood(&log, 0..300);
            if closed {
                log.close_file();
            }
            harm(&dir.path().join(format!("logs/1.{segment}")));
            for view in VIEWS {
                let items = follow(&log, view, StartAt::Beginning);
                let lost: u64 =
                    items.iter().map(|i| if let Item::Gap { lost_bytes, .. } = i { *lost_bytes } else { 0 }).sum();
                let kept: usize = lines_of(&items).iter().map(|line| line.text.len() + 1).sum();
                // A deleted file that is still open can be read; every other damage is a gap of its size.
                let expected = if view == View::Stderr { 0 } else { 300 * 16 };
                assert_eq!(lost + kept as u64, expected, "{items:?}");
            }
            log.lines(View::Combined, Some(10)).for_each(drop);
            raw(&log, View::Combined);
            flood(&log, 300..310);
            assert_eq!(lines_of(&follow(&log, View::Stdout, StartAt::Tail(10))).len(), 10);
        }
    }
}
