//! Trees that are packed and unpacked, and archives that must not be unpacked.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::stat::{Mode, umask};

use super::entry::{Entry, EntryKind, Time, pad};
use super::*;
use crate::files::FileError;

/// Packs a tree.
fn packed(path: &Path, format: ArchiveFormat) -> Vec<u8> {
    let mut archive = Vec::new();
    pack(path, format, &mut archive).unwrap();
    archive
}

/// An archive of these entries.
fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (entry, content) in entries {
        let entry = Entry { size: content.len() as u64, ..entry.clone() };
        entry.write_head(&mut out);
        out.extend_from_slice(content);
        pad(entry.size, &mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn entry(kind: EntryKind, path: &str) -> Entry {
    let modified = Time { seconds: 1_000_000_000, nanoseconds: 0 };
    Entry { kind, path: path.into(), mode: 0o755, modified, ..Entry::default() }
}

fn link(kind: EntryKind, path: &str, to: &str) -> Entry {
    Entry { link: to.into(), ..entry(kind, path) }
}

fn unpacked(archive: &[u8]) -> (tempfile::TempDir, Result<(), UnpackError>) {
    let dir = tempfile::tempdir().unwrap();
    let result = unpack(&dir.path().join("P"), &mut &archive[..], UnpackOptions::default());
    (dir, result)
}

/// The path, mode, modification time, and content or target of a file.
type Snapshot = (Vec<u8>, u32, (i64, i64), Vec<u8>);

/// Every file below a directory.
fn snapshot(dir: &Path) -> Vec<Snapshot> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            let content = match stat.file_type() {
                kind if kind.is_dir() => b"directory".to_vec(),
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
                kind if kind.is_file() => fs::read(&path).unwrap(),
                _ => b"other".to_vec(),
            };
            let name = path.strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec();
            found.push((name, stat.mode(), (stat.mtime(), stat.mtime_nsec()), content));
            if stat.is_dir() {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_is_the_same_after_a_journey() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join("tree").join(path);
    fs::create_dir_all(at("a/empty")).unwrap();
    fs::create_dir_all(at("read-only/below")).unwrap();
    fs::create_dir_all(at(&"deep/".repeat(60))).unwrap();
    fs::write(at("a/file"), b"content").unwrap();
    fs::write(at("a/nothing"), b"").unwrap();
    fs::write(at("read-only/file"), b"x").unwrap();
    fs::write(at(&"n".repeat(255)), b"long name").unwrap();
    fs::write(at("\u{e9}\n"), b"not ascii").unwrap();
    fs::write(dir.path().join("tree").join(std::ffi::OsStr::from_bytes(b"\xff")), b"not UTF-8").unwrap();
    fs::write(at("large"), vec![7; 300_000]).unwrap();
    File::create(at("sparse")).unwrap().set_len(1 << 20).unwrap();
    symlink("../nowhere", at("a/link")).unwrap();
    symlink("/etc/passwd", at("a/absolute")).unwrap();
    fs::hard_link(at("a/file"), at("a/other")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
    for (path, mode) in
        [("a/file", 0o600), ("a/nothing", 0o666), ("a", 0o1777), ("read-only", 0o555), ("a/empty", 0o700)]
    {
        fs::set_permissions(at(path), Permissions::from_mode(mode)).unwrap();
    }
    File::open(at("a/empty"))
        .unwrap()
        .set_modified(UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789))
        .unwrap();
    let mut right = snapshot(&dir.path().join("tree"));
    right.retain(|(name, ..)| name != b"socket");
    for format in [ArchiveFormat::Tar, ArchiveFormat::TarGz] {
        let (to, result) = unpacked(&packed(&dir.path().join("tree"), format));
        result.unwrap();
        assert!(snapshot(&to.path().join("P")) == right, "{format:?}");
        let names = ["P/a/file", "P/a/other"].map(|name| to.path().join(name).metadata().unwrap().ino());
        assert_eq!(names[0], names[1]);
    }
}

#[test]
fn a_single_file_is_an_archive_with_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    let (to, result) = unpacked(&packed(&dir.path().join("file"), ArchiveFormat::Tar));
    result.unwrap();
    assert_eq!(fs::read_to_string(to.path().join("P/file")).unwrap(), "content");
    let missing = pack(&dir.path().join("nothing"), ArchiveFormat::Tar, &mut io::sink());
    assert!(matches!(missing, Err(ArchiveError::File(FileError::NotFound(_)))));
    assert!(pack(Path::new("/proc"), ArchiveFormat::Tar, &mut io::sink()).is_err());
    assert!(pack(Path::new("/dev/null"), ArchiveFormat::Tar, &mut io::sink()).is_err());
}

#[test]
fn entries_that_lead_outside_are_refused_and_those_before_stay() {
    let first = (entry(EntryKind::File, "first"), &b"1"[..]);
    let to_etc = (link(EntryKind::Symlink, "to", "/etc"), &b""[..]);
    let inside = (link(EntryKind::Symlink, "to", "."), &b""[..]);
    let up = (link(EntryKind::Symlink, "to", ".."), &b""[..]);
    for (before, wrong, name) in [
        (None, entry(EntryKind::File, "../outside"), "../outside"),
        (None, entry(EntryKind::Directory, "a/../../outside"), "a/../../outside"),
        (None, entry(EntryKind::File, "/outside"), "/outside"),
        (None, link(EntryKind::HardLink, "shadow", "/etc/shadow"), "shadow"),
        (None, link(EntryKind::HardLink, "shadow", "../../../../../../../etc/shadow"), "shadow"),
        (Some(&to_etc), link(EntryKind::HardLink, "shadow", "to/shadow"), "shadow"),
        (Some(&to_etc), entry(EntryKind::File, "to/outside"), "to/outside"),
        (Some(&to_etc), entry(EntryKind::Directory, "to/outside"), "to/outside"),
        (Some(&to_etc), entry(EntryKind::Directory, "to"), "to"),
        (Some(&inside), entry(EntryKind::File, "to/outside"), "to/outside"),
        (Some(&up), link(EntryKind::Symlink, "to/outside", "x"), "to/outside"),
        (Some(&up), entry(EntryKind::Fifo, "to/outside"), "to/outside"),
        (None, entry(EntryKind::Device, "null"), "null"),
        (None, link(EntryKind::HardLink, "missing", "nothing"), "missing"),
        (None, entry(EntryKind::File, "."), "."),
        (None, entry(EntryKind::Other(b'M'), "volume"), "volume"),
    ] {
        let mut entries = vec![first.clone()];
        entries.extend(before.cloned());
        let whole = entries.len();
        entries.push((wrong, b""));
        let (dir, result) = unpacked(&archive(&entries));
        let error = result.unwrap_err();
        let is_it = matches!(&error.error, ArchiveError::BadEntry { entry, .. } if entry == name);
        assert!(is_it && error.unpacked == whole as u64, "{name}: {error}");
        assert_eq!(fs::read(dir.path().join("P/first")).unwrap(), b"1");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{name}");
        assert!(!Path::new("/etc/outside").exists() && !dir.path().join("P/outside").exists());
    }
}

#[test]
fn existing_files_are_replaced_and_directories_kept() {
    let (dir, result) = unpacked(&archive(&[(entry(EntryKind::File, "a/file"), b"old")]));
    result.unwrap();
    let at = |path: &str| dir.path().join("P").join(path);
    fs::hard_link(at("a/file"), dir.path().join("outside")).unwrap();
    symlink(dir.path().join("outside"), at("a/link")).unwrap();
    fs::set_permissions(at("a"), Permissions::from_mode(0o700)).unwrap();
    let mut reader = File::open(at("a/file")).unwrap();
    let again = archive(&[
        (entry(EntryKind::Directory, "a/"), b""),
        (entry(EntryKind::File, "a/file"), b"new"),
        (entry(EntryKind::File, "a/link"), b"no link"),
        (link(EntryKind::HardLink, "a/hard", "a/file"), b""),
        (link(EntryKind::HardLink, "a/hard", "a/file"), b""),
        (link(EntryKind::Symlink, "a/file2", "x"), b""),
        (link(EntryKind::Symlink, "a/file2", "y"), b""),
    ]);
    unpack(&dir.path().join("P"), &mut &again[..], UnpackOptions::default()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "old");
    assert_eq!((fs::read(at("a/file")).unwrap(), fs::read(at("a/hard")).unwrap()), (b"new".to_vec(), b"new".to_vec()));
    assert_eq!(fs::read(at("a/link")).unwrap(), b"no link");
    assert_eq!(fs::read_link(at("a/file2")).unwrap(), Path::new("y"));
    assert_eq!(at("a").metadata().unwrap().mode() & 0o7777, 0o700);
    let mut old = String::new();
    io::Read::read_to_string(&mut reader, &mut old).unwrap();
    assert_eq!((old.as_str(), fs::read_dir(at("a")).unwrap().count()), ("old", 4));
    // A directory and a file do not replace each other.
    for wrong in
        [entry(EntryKind::File, "a"), entry(EntryKind::Directory, "a/file"), entry(EntryKind::File, "a/file/x")]
    {
        let error =
            unpack(&dir.path().join("P"), &mut &archive(&[(wrong, b"")])[..], UnpackOptions::default()).unwrap_err();
        let is_it = matches!(
            &error.error,
            ArchiveError::File(FileError::IsDirectory(_) | FileError::AlreadyExists(_) | FileError::NotADirectory(_))
        );
        assert!(is_it, "{error}");
    }
}

#[test]
fn an_archive_that_is_cut_leaves_what_was_whole() {
    let whole = archive(&[
        (entry(EntryKind::Directory, "a/"), b""),
        (entry(EntryKind::File, "a/one"), &[1; 600]),
        (entry(EntryKind::File, "a/two"), &[2; 700]),
    ]);
    for length in 0..whole.len() - 512 {
        let (dir, result) = unpacked(&whole[..length]);
        let error = result.unwrap_err();
        assert!(matches!(error.error, ArchiveError::Malformed(_)), "{length}: {error}");
        let found = snapshot(&dir.path().join("P"));
        // The content of the last whole entry need not be followed by the zeros that fill its last block.
        let right = [512, 512 + 512 + 600, 512 + 512 + 1024 + 512 + 700].iter().filter(|end| length >= **end).count();
        assert_eq!((found.len(), error.unpacked), (right, right as u64), "{length}");
        assert!(found.iter().all(|(_, _, (seconds, _), _)| *seconds == 1_000_000_000));
    }
}

#[test]
fn a_compressed_archive_that_is_cut_or_corrupt_is_noticed() {
    let mut noise = vec![0; 3_000];
    noise.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * at % 251) as u8);
    let whole = archive(&[(entry(EntryKind::File, "file"), &noise)]);
    let mut encoder = compression::encoder(Vec::new());
    encoder.write_all(&whole).unwrap();
    let gzip = encoder.finish().unwrap();
    for length in 1..gzip.len() {
        let (_dir, result) = unpacked(&gzip[..length]);
        assert!(matches!(result.unwrap_err().error, ArchiveError::Malformed(_)), "{length}");
    }
    let mut corrupt = gzip.clone();
    let middle = corrupt.len() - 6;
    corrupt[middle] ^= 1;
    assert!(matches!(unpacked(&corrupt).1.unwrap_err().error, ArchiveError::Malformed(_)));
    // Several members, and one after another byte by byte.
    let (first, second) = whole.split_at(1_000);
    let members: Vec<u8> = [first, second]
        .into_iter()
        .flat_map(|part| {
            let mut encoder = compression::encoder(Vec::new());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap()
        })
        .collect();
    let (dir, result) = unpacked(&members);
    result.unwrap();
    assert_eq!(fs::read(dir.path().join("P/file")).unwrap(), noise);
    struct ByteByByte<'b>(&'b [u8]);
    impl io::Read for ByteByByte<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let most = out.len().min(1);
            io::Read::read(&mut self.0, &mut out[..most])
        }
    }
    let dir = tempfile::tempdir().unwrap();
    unpack(dir.path(), &mut ByteByByte(&gzip), UnpackOptions::default()).unwrap();
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), noise);
}

#[test]
fn other_formats_are_named() {
    for (begin, name) in [(&b"PK\x03\x04...."[..], "zip"), (b"BZh91AY", "bzip2"), (b"\x28\xb5\x2f\xfd", "zstd")] {
        let sentence = unpacked(begin).1.unwrap_err().to_string();
        assert!(sentence.contains(name), "{sentence}");
    }
    assert!(unpacked(b"").1.unwrap_err().to_string().contains("is empty"));
    assert!(unpacked(&b"just text".repeat(100)).1.unwrap_err().to_string().contains("checksum"));
}

#[test]
fn entries_and_bytes_have_a_limit() {
    let whole = archive(&[(entry(EntryKind::File, "a/one"), b"12345"), (entry(EntryKind::File, "a/two"), b"12345")]);
    for (entries, bytes, fits) in
        [(Some(3), Some(10), true), (Some(2), None, false), (None, Some(9), false), (Some(0), None, false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let options = UnpackOptions { limit: ArchiveLimit { entries, bytes }, ..UnpackOptions::default() };
        match unpack(dir.path(), &mut &whole[..], options) {
            Ok(()) => assert!(fits),
            Err(error) => assert!(!fits && matches!(error.error, ArchiveError::TooLarge(_)), "{error}"),
        }
    }
}

#[test]
fn a_file_larger_than_the_disk_is_refused_before_its_content() {
    let large = |size| {
        let mut head = Vec::new();
        Entry { size, ..entry(EntryKind::File, "large") }.write_head(&mut head);
        head.extend([0; 2048]);
        unpacked(&head).1.unwrap_err().error
    };
    assert!(matches!(large(1 << 62), ArchiveError::File(FileError::NoSpace { .. })));
    assert!(matches!(large(1 << 63), ArchiveError::Malformed(_)));
}

#[test]
fn owners_and_set_user_id_are_kept_only_if_root_asks() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let with_owner = Entry { uid: 1234, gid: 5678, mode: 0o6755, ..entry(EntryKind::File, "file") };
    let whole = archive(&[(with_owner, b"x")]);
    for preserve_owner in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        unpack(dir.path(), &mut &whole[..], UnpackOptions { preserve_owner, ..UnpackOptions::default() }).unwrap();
        let stat = dir.path().join("file").metadata().unwrap();
        let right = if preserve_owner { (1234, 5678, 0o6755) } else { (0, 0, 0o755) };
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), right);
    }
}

#[test]
fn many_directories_take_little_memory_and_keep_their_times() {
    let entries: Vec<_> =
        (0..15_000).map(|n| (entry(EntryKind::Directory, &format!("d{}/{n}/", n % 7)), &b""[..])).collect();
    let (dir, result) = unpacked(&archive(&entries));
    result.unwrap();
    let found = snapshot(&dir.path().join("P"));
    assert_eq!(found.len(), 15_007);
    let right = found.iter().filter(|(_, _, (seconds, _), _)| *seconds == 1_000_000_000).count();
    assert_eq!(right, 15_000);
}

#[test]
fn the_umask_does_not_change_modes() {
    // The umask of this thread only.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
    umask(Mode::from_bits_truncate(0o077));
    let (dir, result) = unpacked(&archive(&[
        (entry(EntryKind::File, "f"), b""),
        (entry(EntryKind::Directory, "d/"), b""),
        (entry(EntryKind::Fifo, "p"), b""),
    ]));
    result.unwrap();
    for name in ["f", "d", "p"] {
        assert_eq!(dir.path().join("P").join(name).metadata().unwrap().mode() & 0o7777, 0o755, "{name}");
    }
}
