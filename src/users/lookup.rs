//! Looks up users in `/etc/passwd` and `/etc/group`, as the files are at each call: processes in the sandbox may add
//! users at any time.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use tl_os::file_version::FileVersion;
use tl_os::regular_file;

use super::cache::{Cache, Sources, State};
use super::passwd::{self, Identity};
use crate::error::Error;
use crate::model::UserSpec;

/// Maximum size of a file, in bytes: enough for about 200,000 users.
const LIMIT: u64 = 16 << 20;

/// The users that were looked up, of all supervisors of this process.
static CACHE: LazyLock<Cache> = LazyLock::new(Cache::default);

/// Looks up the user named by `spec`. Reads `/etc/group` only if supplementary groups are needed, and neither file if it
/// did so before and they have not changed since. Blocks while the file system does.
///
/// # Errors
/// Those of `passwd::resolve`, and [`Error::from_io`] for a file that cannot be read. A file that does not exist counts
/// as empty.
pub fn resolve(spec: &UserSpec) -> Result<Arc<Identity>, Error> {
    resolve_in(&CACHE, spec, Path::new("/etc"), SystemTime::now)
}

/// The id of a group in `/etc/group`; None if the group has no entry or the file cannot be read.
pub fn group(name: &str) -> Option<u32> {
    passwd::group_id(name, &read(Path::new("/etc/group"), SystemTime::now()).ok()?.bytes)
}

/// Looks up a user in the files of `dir`. `clock` is the time of day.
fn resolve_in(
    cache: &Cache,
    spec: &UserSpec,
    dir: &Path,
    clock: impl FnOnce() -> SystemTime,
) -> Result<Arc<Identity>, Error> {
    let (passwd_path, group_path) = (dir.join("passwd"), dir.join("group"));
    // No lock is held while the file system is asked.
    if let Some(known) = cache.get(spec)
        && is_current(&passwd_path, known.sources.passwd)
        && known.sources.group.is_none_or(|group| is_current(&group_path, group))
    {
        return Ok(Arc::clone(&known.identity));
    }
    let now = clock();
    let file = read(&passwd_path, now)?;
    let mut group_state = None;
    let identity = passwd::resolve(spec, &file.bytes, || {
        let file = read(&group_path, now)?;
        group_state = Some(file.state);
        Ok(file.bytes)
    })?;
    let identity = Arc::new(identity);
    let group = match group_state {
        None => Some(None),
        Some(state) => state.map(Some),
    };
    match (file.state, group) {
        (Some(passwd), Some(group)) => cache.insert(spec, Sources { passwd, group }, &identity),
        _ => cache.remove(spec),
    }
    Ok(identity)
}

/// Whether the file at `path` is still in this state.
fn is_current(path: &Path, state: State) -> bool {
    FileVersion::at(path).is_ok_and(|now| now == state)
}

/// A file that was read.
struct Content {
    bytes: Vec<u8>,
    /// The state that the bytes are from; None if the file may change without a change of its state.
    state: Option<State>,
}

fn read(path: &Path, now: SystemTime) -> Result<Content, Error> {
    let read = || {
        let file = regular_file::open(path)?;
        let version = FileVersion::of_settled(&file, now);
        let bytes = regular_file::read_open(file, LIMIT)?;
        Ok(Content { bytes, state: version.map(Some) })
    };
    match read() {
        Err(error) if regular_file::ReadError::is_not_found(&error) => {
            Ok(Content { bytes: Vec::new(), state: Some(None) })
        }
        result => result.map_err(|error| Error::from_io(&format!("reading {}", path.display()), &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes, OpenOptions};
    use std::io::Write;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use tempfile::TempDir;

    use super::*;

    fn root() -> UserSpec {
        UserSpec::Name { name: "root".into(), gid: None }
    }

    /// Looks up a user with an empty cache.
    fn look_up(spec: &UserSpec, dir: &Path) -> Result<Arc<Identity>, Error> {
        resolve_in(&Cache::default(), spec, dir, SystemTime::now)
    }

    /// The home directory of root. At the time that `resolve` is told, the files are an hour old, so that it is cached.
    fn home(cache: &Cache, dir: &Path) -> Result<String, Error> {
        let hour = Duration::from_secs(3_600);
        Ok(resolve_in(cache, &root(), dir, || SystemTime::now() + hour)?.home.clone())
    }

    /// Waits until a change of a file gets another time than one before this call.
    fn await_tick(dir: &Path) {
        let time = |name: &str| {
            fs::write(dir.join(name), "").unwrap();
            std::os::unix::fs::MetadataExt::ctime_nsec(&fs::metadata(dir.join(name)).unwrap())
        };
        let before = time("tick");
        while time("tick") == before {
            std::thread::yield_now();
        }
    }

    fn entry(home: &str) -> String {
        format!("root:x:0:0::{home}:/bin/sh\n")
    }

    fn dir(passwd: &str) -> TempDir {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("passwd"), passwd).unwrap();
        dir
    }

    #[test]
    fn root_is_found_in_the_files_of_this_machine() {
        let root = resolve(&root()).unwrap();
        assert_eq!((root.uid, root.gid, root.groups.first()), (0, 0, Some(&0)));
    }

    #[test]
    fn files_are_read_at_each_call_and_may_be_missing() {
        let dir = dir("");
        assert_eq!(look_up(&root(), dir.path()), Err(Error::UserNotFound("root".into())));
        fs::write(dir.path().join("passwd"), "root:x:0:0::/root:/bin/sh").unwrap();
        assert_eq!(look_up(&root(), dir.path()).unwrap().groups, [0]);
        fs::write(dir.path().join("group"), "wheel:x:10:root").unwrap();
        assert_eq!(look_up(&root(), dir.path()).unwrap().groups, [0, 10]);
        fs::remove_file(dir.path().join("passwd")).unwrap();
        assert_eq!(look_up(&root(), dir.path()), Err(Error::UserNotFound("root".into())));
    }

    #[test]
    fn a_fifo_or_directory_is_an_error_and_does_not_block() {
        let dir = dir("root:x:0:0::/root:/bin/sh");
        let group = dir.path().join("group");
        nix::unistd::mkfifo(&group, Mode::S_IRWXU).unwrap();
        assert!(matches!(look_up(&root(), dir.path()), Err(Error::Internal(_))));
        // The file is not read if the gid is given.
        assert!(look_up(&"0:0".parse().unwrap(), dir.path()).is_ok());
        fs::remove_file(&group).unwrap();
        fs::create_dir(&group).unwrap();
        assert!(matches!(look_up(&root(), dir.path()), Err(Error::Internal(_))));
    }

    #[test]
    fn a_file_that_is_too_long_is_an_error() {
        let dir = dir("root:x:0:0::/root:/bin/sh");
        let group = File::create(dir.path().join("group")).unwrap();
        group.set_len(LIMIT).unwrap();
        assert!(look_up(&root(), dir.path()).is_ok());
        group.set_len(LIMIT + 1).unwrap();
        let error = look_up(&root(), dir.path()).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn a_user_is_read_once_while_the_files_do_not_change() {
        let (cache, dir) = (Cache::default(), dir(&entry("/a")));
        assert_eq!(home(&cache, dir.path()).as_deref(), Ok("/a"));
        let unread = || panic!("the files are read again");
        assert_eq!(resolve_in(&cache, &root(), dir.path(), unread).unwrap().home, "/a");
        // A file that did not exist is one that has changed when it does.
        fs::write(dir.path().join("group"), "wheel:x:10:root").unwrap();
        assert_eq!(resolve_in(&cache, &root(), dir.path(), SystemTime::now).unwrap().groups, [0, 10]);
    }

    #[test]
    fn changes_within_a_tick_of_the_clock_are_seen() {
        let (cache, dir) = (Cache::default(), dir(""));
        // All of the same size: only the time can show the change, and many have the same time.
        for n in 100..1_000 {
            let want = format!("/{n}");
            let mut file = OpenOptions::new().write(true).open(dir.path().join("passwd")).unwrap();
            file.write_all(entry(&want).as_bytes()).unwrap();
            let found = resolve_in(&cache, &root(), dir.path(), SystemTime::now).unwrap();
            assert_eq!(found.home, want);
        }
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        let (cache, dir) = (Cache::default(), dir(&entry("/a")));
        let (passwd, other) = (dir.path().join("passwd"), dir.path().join("other"));
        let now = || {
            await_tick(dir.path());
            home(&cache, dir.path())
        };
        assert_eq!(now().as_deref(), Ok("/a"));
        // In place, with the same size and the old time of modification.
        let modified = fs::metadata(&passwd).unwrap().modified().unwrap();
        fs::write(&passwd, entry("/b")).unwrap();
        let times = FileTimes::new().set_modified(modified);
        File::options().write(true).open(&passwd).unwrap().set_times(times).unwrap();
        assert_eq!(now().as_deref(), Ok("/b"));
        fs::write(&other, entry("/c")).unwrap();
        fs::rename(&other, &passwd).unwrap();
        assert_eq!(now().as_deref(), Ok("/c"));
        fs::remove_file(&passwd).unwrap();
        assert_eq!(now(), Err(Error::UserNotFound("root".into())));
        // A link to a file, and then to another one.
        for home in ["/d", "/e"] {
            let target = dir.path().join(&home[1..]);
            fs::write(&target, entry(home)).unwrap();
            let _ = fs::remove_file(&passwd);
            std::os::unix::fs::symlink(&target, &passwd).unwrap();
            assert_eq!(now().as_deref(), Ok(home));
        }
        fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, Mode::S_IRWXU).unwrap();
        assert!(matches!(now(), Err(Error::Internal(_))));
    }
}
