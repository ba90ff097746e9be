//! Watches of real directories.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::TempDir;
use tl_os::poll::{Events, wait};

use super::*;

fn file_path(path: &Path) -> FilePath {
    FilePath::parse(path.as_os_str().as_bytes(), "/").unwrap()
}

/// A watch of `tree` in a directory of its own, and what it has reported: `+path`, `~path`, `-path`, `path>path`, and `!`
/// for an overflow, with `/` at the end of a directory.
struct Watched {
    dir: TempDir,
    watch: Watch,
    ended: bool,
}

impl Watched {
    fn begin(is_recursive: bool, prepare: impl FnOnce(&Path)) -> Watched {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        prepare(dir.path());
        let watch = Watch::begin(&file_path(&tree), is_recursive).unwrap();
        Watched { dir, watch, ended: false }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Reports all that has happened. While others make changes without a pause, this may not end.
    fn events(&mut self) -> Vec<String> {
        self.events_until(None)
    }

    /// Reports what has happened, until there is nothing more or this time has come.
    fn events_until(&mut self, end: Option<Instant>) -> Vec<String> {
        let mut events = Vec::new();
        let dir = self.dir.path().as_os_str().as_bytes().to_vec();
        let shown = |path: &[u8], is_dir: bool| {
            let below = path.strip_prefix(&*dir).unwrap_or_else(|| panic!("outside: {path:?}"));
            format!("{}{}", String::from_utf8_lossy(&below[1..]), if is_dir { "/" } else { "" })
        };
        loop {
            let progress = self.watch.advance(&mut |event| {
                events.push(match event {
                    WatchEvent::Overflow => "!".to_owned(),
                    WatchEvent::Change { kind, path, to, is_dir } => match (kind, to) {
                        (ChangeKind::Created, None) => format!("+{}", shown(path, is_dir)),
                        (ChangeKind::Modified, None) => format!("~{}", shown(path, is_dir)),
                        (ChangeKind::Deleted, None) => format!("-{}", shown(path, is_dir)),
                        (ChangeKind::Moved, Some(to)) => format!("{}>{}", shown(path, is_dir), shown(to, is_dir)),
                        other => panic!("{other:?}"),
                    },
                });
                Ok(())
            });
            match progress.unwrap() {
                Progress::More if end.is_some_and(|end| Instant::now() >= end) => return events,
                Progress::More => {}
                Progress::Wait(None) => return events,
                Progress::Wait(until) => drop(wait([(self.watch.as_fd(), Events::READ)], until).unwrap()),
                Progress::Ended => {
                    self.ended = true;
                    return events;
                }
                Progress::Failed(error) => {
                    events.push(format!("error: {error}"));
                    self.ended = true;
                    return events;
                }
            }
        }
    }

    fn sorted(&mut self) -> Vec<String> {
        let mut events = self.events();
        events.sort();
        events
    }
}

#[test]
fn each_change_of_a_directory_is_reported() {
    let mut watched = Watched::begin(false, |dir| fs::create_dir(dir.join("tree/sub")).unwrap());
    assert_eq!(watched.events(), [""; 0]);
    fs::write(watched.at("tree/a"), "x").unwrap();
    assert_eq!(watched.events(), ["+tree/a", "~tree/a"]);
    fs::rename(watched.at("tree/a"), watched.at("tree/b")).unwrap();
    fs::remove_file(watched.at("tree/b")).unwrap();
    fs::create_dir(watched.at("tree/new")).unwrap();
    fs::write(watched.at("tree/new/unseen"), "").unwrap();
    fs::write(watched.at("tree/sub/unseen"), "").unwrap();
    symlink("sub", watched.at("tree/link")).unwrap();
    assert_eq!(watched.events(), ["tree/a>tree/b", "-tree/b", "+tree/new/", "+tree/link"]);
    fs::write(watched.at("elsewhere"), "").unwrap();
    fs::rename(watched.at("elsewhere"), watched.at("tree/in")).unwrap();
    fs::rename(watched.at("tree/new"), watched.at("out")).unwrap();
    fs::rename(watched.at("tree/sub/unseen"), watched.at("tree/seen")).unwrap();
    assert_eq!(watched.events(), ["+tree/in", "-tree/new/", "+tree/seen"]);
}

#[test]
fn consecutive_modifications_are_one() {
    use std::io::Write;
    let mut watched = Watched::begin(false, |dir| fs::write(dir.join("tree/a"), "").unwrap());
    let mut file = fs::File::options().append(true).open(watched.at("tree/a")).unwrap();
    file.write_all(b"x").unwrap();
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(watched.events(), ["~tree/a"]);
    file.write_all(b"x").unwrap();
    assert_eq!(watched.events(), ["~tree/a"], "later ones are another change");
}

#[test]
fn directories_are_watched_as_they_appear_and_what_is_in_them_is_reported_once() {
    let mut watched = Watched::begin(true, |dir| fs::create_dir_all(dir.join("tree/old/deep")).unwrap());
    fs::write(watched.at("tree/old/deep/x"), "").unwrap();
    fs::create_dir_all(watched.at("tree/a/b/c/d")).unwrap();
    for name in ["tree/a/1", "tree/a/b/2", "tree/a/b/c/3", "tree/a/b/c/d/4"] {
        fs::write(watched.at(name), "").unwrap();
    }
    let right = [
        "+tree/a/",
        "+tree/a/1",
        "+tree/a/b/",
        "+tree/a/b/2",
        "+tree/a/b/c/",
        "+tree/a/b/c/3",
        "+tree/a/b/c/d/",
        "+tree/a/b/c/d/4",
        "+tree/old/deep/x",
    ];
    assert_eq!(watched.sorted(), right);
    fs::write(watched.at("tree/a/b/c/d/5"), "").unwrap();
    assert_eq!(watched.events(), ["+tree/a/b/c/d/5"]);
    // Moved in, with what is in it.
    fs::create_dir_all(watched.at("out/sub")).unwrap();
    fs::write(watched.at("out/sub/f"), "").unwrap();
    fs::rename(watched.at("out"), watched.at("tree/in")).unwrap();
    assert_eq!(watched.sorted(), ["+tree/in/", "+tree/in/sub/", "+tree/in/sub/f"]);
    // Renamed with all below.
    fs::rename(watched.at("tree/a/b"), watched.at("tree/in/b")).unwrap();
    fs::write(watched.at("tree/in/b/c/d/6"), "").unwrap();
    assert_eq!(watched.events(), ["tree/a/b/>tree/in/b/", "+tree/in/b/c/d/6"]);
    // Renamed before the event of what is new in it is read.
    fs::create_dir(watched.at("tree/in/b/c/e")).unwrap();
    fs::write(watched.at("tree/in/b/c/e/7"), "").unwrap();
    fs::rename(watched.at("tree/in/b"), watched.at("tree/z")).unwrap();
    assert_eq!(watched.events(), ["+tree/in/b/c/e/", "tree/in/b/>tree/z/", "+tree/z/c/e/7"]);
    fs::write(watched.at("tree/z/c/e/8"), "").unwrap();
    assert_eq!(watched.events(), ["+tree/z/c/e/8"]);
}

#[test]
fn what_was_moved_out_or_removed_is_no_longer_watched() {
    let mut watched = Watched::begin(true, |dir| fs::create_dir_all(dir.join("tree/a/b")).unwrap());
    fs::rename(watched.at("tree/a"), watched.at("out")).unwrap();
    fs::write(watched.at("out/b/f"), "").unwrap();
    fs::write(watched.at("out/f"), "").unwrap();
    assert_eq!(watched.events(), ["-tree/a/"]);
    fs::write(watched.at("out/b/g"), "").unwrap();
    assert_eq!(watched.events(), [""; 0]);
    assert_eq!(watched.watch.translator.table.len(), 1);
    assert_eq!(watches(&watched.watch), 2, "the root, and what it is in");
    fs::rename(watched.at("out"), watched.at("tree/a")).unwrap();
    assert_eq!(watched.sorted(), ["+tree/a/", "+tree/a/b/", "+tree/a/b/f", "+tree/a/b/g", "+tree/a/f"]);
    fs::remove_dir_all(watched.at("tree/a")).unwrap();
    let events = watched.events();
    assert_eq!((events.len(), &**events.last().unwrap()), (5, "-tree/a/"), "{events:?}");
    assert_eq!((watched.watch.translator.table.len(), watches(&watched.watch)), (1, 2));
}

/// The number of watches that the kernel has.
fn watches(watch: &Watch) -> usize {
    use std::os::fd::AsRawFd;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", watch.as_fd().as_raw_fd())).unwrap();
    info.lines().filter(|line| line.starts_with("inotify ")).count()
}

#[test]
fn the_watch_ends_with_its_root() {
    type End = fn(&Watched);
    let ends: [(&str, End); 4] = [
        ("removed", |watched| fs::remove_dir_all(watched.at("tree")).unwrap()),
        ("moved", |watched| fs::rename(watched.at("tree"), watched.at("other")).unwrap()),
        ("replaced", |watched| {
            fs::remove_file(watched.at("tree/last")).unwrap();
            fs::create_dir(watched.at("other")).unwrap();
            fs::rename(watched.at("other"), watched.at("tree")).unwrap();
        }),
        ("swapped for a symlink", |watched| {
            symlink("/etc", watched.at("link")).unwrap();
            renameat2(AT_FDCWD, &watched.at("tree"), AT_FDCWD, &watched.at("link"), RenameFlags::RENAME_EXCHANGE)
                .unwrap();
        }),
    ];
    for is_recursive in [false, true] {
        for (what, end) in ends {
            for is_used in [false, true] {
                let mut watched = Watched::begin(is_recursive, |dir| fs::write(dir.join("tree/last"), "").unwrap());
                // As for a process that works in it, the kernel does not say that it was removed.
                let used = is_used.then(|| fs::File::open(watched.at("tree")).unwrap());
                end(&watched);
                let events = watched.events();
                assert!(watched.ended && events.last().unwrap() == "-tree/", "{what}, used: {is_used}: {events:?}");
                drop(used);
            }
        }
    }
}

#[test]
fn a_renamed_directory_above_the_root_is_noticed_when_it_is_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/tree")).unwrap();
    let watch = Watch::begin(&file_path(&dir.path().join("a/tree/")), true).unwrap();
    let mut watched = Watched { dir, watch, ended: false };
    watched.watch.check();
    assert_eq!(watched.events(), [""; 0]);
    fs::rename(watched.at("a"), watched.at("b")).unwrap();
    watched.watch.check();
    assert_eq!(watched.events(), ["-a/tree//"]);
    assert!(watched.ended);
}

#[test]
fn a_file_is_watched_until_it_is_removed_or_replaced() {
    type End = fn(&Watched);
    let ends: [End; 3] = [
        |watched| fs::remove_file(watched.at("tree/f")).unwrap(),
        |watched| fs::rename(watched.at("tree/f"), watched.at("g")).unwrap(),
        |watched| {
            fs::write(watched.at("new"), "").unwrap();
            fs::rename(watched.at("new"), watched.at("tree/f")).unwrap();
        },
    ];
    for end in ends {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        fs::write(dir.path().join("tree/f"), "x").unwrap();
        let watch = Watch::begin(&file_path(&dir.path().join("tree/f")), true).unwrap();
        let mut watched = Watched { dir, watch, ended: false };
        let open = fs::File::options().append(true).open(watched.at("tree/f")).unwrap();
        fs::write(watched.at("tree/f"), "longer").unwrap();
        fs::write(watched.at("tree/other"), "").unwrap();
        assert_eq!(watched.events(), ["~tree/f"]);
        open.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(watched.events(), ["~tree/f"]);
        end(&watched);
        assert_eq!(watched.events(), ["-tree/f"], "although it is open");
        assert!(watched.ended);
    }
}

#[test]
fn exchanged_directories_are_watched_under_their_new_names() {
    let mut watched = Watched::begin(true, |dir| {
        fs::create_dir_all(dir.join("tree/a/in-a")).unwrap();
        fs::create_dir_all(dir.join("tree/b/in-b")).unwrap();
    });
    let exchange = |watched: &Watched| {
        let flags = RenameFlags::RENAME_EXCHANGE;
        renameat2(AT_FDCWD, &watched.at("tree/a"), AT_FDCWD, &watched.at("tree/b"), flags).unwrap();
    };
    exchange(&watched);
    let events = watched.events();
    let right =
        ["tree/a/>tree/b/", "-tree/b/", "+tree/a/", "+tree/a/in-b/", "+tree/b/", "+tree/b/in-a/"].map(str::to_owned);
    assert_eq!(events, right);
    fs::write(watched.at("tree/a/in-b/f"), "").unwrap();
    fs::write(watched.at("tree/b/in-a/f"), "").unwrap();
    assert_eq!(watched.events(), ["+tree/a/in-b/f", "+tree/b/in-a/f"]);
    assert_eq!((watched.watch.translator.table.len(), watches(&watched.watch)), (5, 6));
}

#[test]
fn a_directory_and_a_file_that_are_exchanged_are_reported_as_created() {
    for is_recursive in [false, true] {
        for swapped in [false, true] {
            let mut watched = Watched::begin(is_recursive, |dir| {
                fs::create_dir_all(dir.join("tree/d/sub")).unwrap();
                fs::write(dir.join("tree/f"), "").unwrap();
            });
            let (one, other) = if swapped { ("tree/f", "tree/d") } else { ("tree/d", "tree/f") };
            let flags = RenameFlags::RENAME_EXCHANGE;
            renameat2(AT_FDCWD, &watched.at(one), AT_FDCWD, &watched.at(other), flags).unwrap();
            let mut paths = ["tree/d", "tree/d/sub", "tree/f"].map(str::to_owned).into();
            watched.events().iter().for_each(|event| mirror(&mut paths, event));
            paths.insert("tree/f/sub".to_owned());
            assert_eq!(paths, ["tree/d", "tree/f", "tree/f/sub"].map(str::to_owned).into());
            assert_eq!(watched.watch.translator.table.len(), if is_recursive { 3 } else { 1 });
        }
    }
}

#[test]
fn symlinks_are_not_followed() {
    let mut watched = Watched::begin(true, |dir| {
        fs::create_dir_all(dir.join("outside/sub")).unwrap();
        symlink("../outside", dir.join("tree/link")).unwrap();
    });
    symlink("../outside", watched.at("tree/new")).unwrap();
    assert_eq!(watched.events(), ["+tree/new"]);
    fs::write(watched.at("outside/f"), "").unwrap();
    fs::write(watched.at("outside/sub/f"), "").unwrap();
    assert_eq!(watched.events(), [""; 0]);
    // The path of the request is: a symlink to the root.
    let root = Watch::begin(&file_path(&watched.at("tree/link")), true).unwrap();
    assert_eq!(watches(&root), 3);
}

#[test]
fn too_many_directories_are_an_error_at_once_or_later() {
    let fill = |dir: &Path, count: usize| {
        for n in 0..count {
            fs::create_dir(dir.join(n.to_string())).unwrap();
        }
    };
    let mut watched = Watched::begin(true, |dir| fill(&dir.join("tree"), MAX_DIRECTORIES - 1));
    fs::write(watched.at("tree/0/f"), "").unwrap();
    assert_eq!(watched.events(), ["+tree/0/f"]);
    let usual = Watch::begin(&file_path(&watched.at("tree")), false).unwrap();
    fs::create_dir(watched.at("tree/more")).unwrap();
    let events = watched.events();
    assert_eq!((events.len(), &*events[0], watched.ended), (2, "+tree/more/", true));
    assert!(events[1].contains("more than 8192 directories"), "{events:?}");
    let refused = Watch::begin(&file_path(&watched.at("tree")), true);
    assert!(matches!(refused, Err(FileError::TooManyDirectories(_))), "{refused:?}");
    drop(usual);
}

#[test]
fn a_full_queue_is_an_overflow_after_which_new_directories_are_watched() {
    let max = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let max: usize = max.trim().parse().unwrap();
    let mut watched = Watched::begin(true, |dir| {
        fs::create_dir(dir.join("tree/old")).unwrap();
        fs::create_dir(dir.join("tree/gone")).unwrap();
    });
    for n in 0..=max / 2 {
        fs::write(watched.at("tree/f"), n.to_string()).unwrap();
        fs::remove_file(watched.at("tree/f")).unwrap();
    }
    fs::create_dir(watched.at("tree/new")).unwrap();
    fs::rename(watched.at("tree/old"), watched.at("tree/new/old")).unwrap();
    fs::remove_dir(watched.at("tree/gone")).unwrap();
    let events = watched.events();
    assert_eq!(events.iter().filter(|event| *event == "!").count(), 1);
    assert_eq!(events.last().unwrap(), "!");
    fs::write(watched.at("tree/new/f"), "").unwrap();
    fs::write(watched.at("tree/new/old/f"), "").unwrap();
    assert_eq!(watched.events(), ["+tree/new/f", "+tree/new/old/f"]);
    assert_eq!((watched.watch.translator.table.len(), watches(&watched.watch)), (3, 4));
}

#[test]
fn a_path_that_is_too_long_is_reported_but_not_watched() {
    use nix::sys::stat::{Mode, mkdirat};
    let mut watched = Watched::begin(true, |_| {});
    let name = "d".repeat(250);
    let mut dir: OwnedFd = fs::File::open(watched.at("tree")).unwrap().into();
    for _ in 0..20 {
        mkdirat(&dir, &*name, Mode::S_IRWXU).unwrap();
        dir = nix::fcntl::openat(&dir, &*name, nix::fcntl::OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    let events = watched.events();
    let longest = events.iter().map(String::len).max().unwrap();
    assert_eq!(events.len(), 17, "{longest}");
    assert!(events.iter().all(|event| event.starts_with('+')));
    fs::remove_dir_all(watched.at("tree")).unwrap();
}

#[test]
fn an_unreadable_root_is_an_error_and_other_things_are_too() {
    let dir = tempfile::tempdir().unwrap();
    let begin = |name: &str| Watch::begin(&file_path(&dir.path().join(name)), true);
    assert!(matches!(begin("nothing"), Err(FileError::NotFound(_))));
    fs::write(dir.path().join("f"), "").unwrap();
    assert!(matches!(begin("f/"), Err(FileError::NotADirectory(_))));
    let own = Watch::begin(&file_path(Path::new("/proc/thread-self/fd")), false);
    assert!(matches!(own, Err(FileError::Denied { .. })), "{own:?}");
}

/// What a client makes of the events: the paths below the tree.
fn mirror(paths: &mut BTreeSet<String>, event: &str) {
    let below = |paths: &mut BTreeSet<String>, of: &str| -> Vec<String> {
        let of = of.trim_end_matches('/').to_owned();
        let found = paths.iter().filter(|path| **path == of || path.starts_with(&format!("{of}/"))).cloned();
        let found: Vec<String> = found.collect();
        paths.retain(|path| !found.contains(path));
        found
    };
    if let Some(path) = event.strip_prefix('+') {
        paths.insert(path.trim_end_matches('/').to_owned());
    } else if let Some(path) = event.strip_prefix('-') {
        below(paths, path);
    } else if let Some((from, to)) = event.split_once('>') {
        let (from, to) = (from.trim_end_matches('/'), to.trim_end_matches('/'));
        let moved = below(paths, from);
        below(paths, to);
        paths.insert(to.to_owned());
        paths.extend(moved.iter().map(|path| format!("{to}{}", &path[from.len()..])));
    }
}

fn find(dir: &Path, root: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        into.insert(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        if entry.file_type().unwrap().is_dir() {
            find(&entry.path(), root, into);
        }
    }
}

/// Random changes by several threads at once.
fn change_at_random(dir: &Path, seed: u64, end: &AtomicBool) {
    let mut state = seed;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    while !end.load(Ordering::Relaxed) {
        let mut path = |inside: bool| {
            let mut path = dir.join(if inside || random(4) > 0 { "tree" } else { "out" });
            (0..=random(4)).for_each(|_| path.push(["a", "b", "c", "d"][random(4)]));
            path
        };
        let (one, other, inside) = (path(false), path(false), path(true));
        match random(14) {
            12 => drop(renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE)),
            0..=2 => drop(fs::create_dir_all(inside)),
            3 => drop(fs::create_dir(one)),
            4 | 5 => drop(fs::write(one, "x")),
            6 => drop(fs::remove_file(one)),
            7 => drop(fs::remove_dir_all(one)),
            8 => drop(fs::remove_dir(one)),
            _ => drop(fs::rename(one, other)),
        }
    }
}

struct StopAtEnd<'e>(&'e AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_client_that_follows_the_events_knows_the_tree_whatever_happens_at_once() {
    let seeds = std::env::var("SEEDS").map_or(6, |seeds| seeds.parse().unwrap());
    for seed in 1..=seeds {
        let mut watched = Watched::begin(true, |dir| fs::create_dir_all(dir.join("out/a/b/c")).unwrap());
        let end = AtomicBool::new(false);
        let (mut known, mut all, mut overflows) = (BTreeSet::new(), Vec::new(), 0);
        std::thread::scope(|scope| {
            // Also after a panic, as the scope waits for its threads.
            let _stop = StopAtEnd(&end);
            for thread in 0..3 {
                let (dir, end) = (watched.dir.path().to_owned(), &end);
                scope.spawn(move || change_at_random(&dir, seed * 1000 + thread, end));
            }
            let until = Instant::now() + Duration::from_millis(700);
            while Instant::now() < until {
                // Some of the time, the events tell of what is long over.
                let lag = Duration::from_millis(seed % 3 * 4);
                wait([(watched.watch.as_fd(), Events::NONE)], Some(Instant::now() + lag)).unwrap();
                wait([(watched.watch.as_fd(), Events::READ)], Some(until)).unwrap();
                all.extend(watched.events_until(Some(until)));
            }
        });
        all.extend(watched.events());
        assert!(!watched.ended);
        let mut right = BTreeSet::new();
        find(&watched.at("tree"), watched.dir.path(), &mut right);
        for event in &all {
            if event == "!" {
                overflows += 1;
            }
            mirror(&mut known, event);
        }
        assert!(all.len() > 500, "{}", all.len());
        if overflows == 0 {
            let tail = all[all.len().saturating_sub(60)..].join("\n");
            assert_eq!(known, right, "seed {seed}, {} events, the last:\n{tail}", all.len());
        }
        eprintln!("seed {seed}: {} events, {overflows} overflows, {} paths", all.len(), right.len());
        // All directories are watched, and nothing else.
        let dirs = right.iter().filter(|path| watched.at(path).is_dir()).count();
        assert_eq!((watched.watch.translator.table.len(), watches(&watched.watch)), (dirs + 1, dirs + 2));
        for path in right {
            if !watched.at(&path).is_dir() {
                continue;
            }
            fs::write(watched.at(&path).join("probe"), "").unwrap();
            let first = watched.events().into_iter().next();
            assert_eq!(first, Some(format!("+{path}/probe")));
        }
    }
}
