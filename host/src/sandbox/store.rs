//! The files of the state directory: one for each record, one for each token.
//!
//! | path | what |
//! |---|---|
//! | `lock` | held with `flock` while tl-host runs |
//! | `instance` | the random id of this directory, which is a label of all that is made in the engine |
//! | `sandboxes/<id>.json`, `snapshots/<id>.json` | the records |
//! | `tokens/<id>` | the token of a sandbox, readable by its owner only |
//! | `damaged/` | files that could not be read; as long as one is there, its container or image stays |
//!
//! A record is written to a temporary file that is renamed over the old one, each with `fsync`: after a crash of the
//! machine a record is the old or the new one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tl_os::random;

use crate::sandbox::error::OpenError;
use crate::sandbox::model::{Record, Snapshot};
use crate::sandbox::name::is_id;

/// Names in the state directory that are files or directories, some of them with more after a dot: `instance.1f3a.new`.
const LOCK: &str = "lock";
const INSTANCE: &str = "instance";
const DAMAGED: &str = "damaged";
const TOKENS: &str = "tokens";
const DIRECTORIES: [&str; 4] = [Record::DIRECTORY, Snapshot::DIRECTORY, TOKENS, DAMAGED];

/// The open state directory.
pub(crate) struct Store {
    directory: PathBuf,
    instance: String,
    _lock: Flock<File>,
}

/// The kinds of records.
pub(crate) trait Stored: Serialize + DeserializeOwned {
    const DIRECTORY: &'static str;
    fn id(&self) -> &str;
}

impl Stored for Record {
    const DIRECTORY: &'static str = "sandboxes";
    fn id(&self) -> &str {
        &self.id
    }
}

impl Stored for Snapshot {
    const DIRECTORY: &'static str = "snapshots";
    fn id(&self) -> &str {
        &self.id
    }
}

impl Store {
    /// Makes the directory if it does not exist, and locks it. A directory of somebody else is left as it is.
    pub(crate) fn open(directory: &Path) -> Result<Store, OpenError> {
        let failed = |cause| OpenError::Disk { path: directory.to_owned(), cause };
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed);
        make(directory)?;
        check_ours(directory)?;
        // The engine mounts files of it, so its path must be absolute.
        let directory = &directory.canonicalize().map_err(failed)?;
        if directory.to_str().is_none() {
            return Err(OpenError::NotUtf8(directory.clone()));
        }
        let lock = private_file().create(true).truncate(false).open(directory.join(LOCK)).map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => OpenError::Locked(directory.to_owned()),
            errno => failed(errno.into()),
        })?;
        for name in DIRECTORIES {
            make(&directory.join(name))?;
        }
        let instance = instance(directory).map_err(failed)?;
        Ok(Store { directory: directory.clone(), instance, _lock: lock })
    }

    /// The random id of this state directory.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// Reads all records of a kind. A file that is damaged is reported by its name, and moved to `damaged/`.
    pub(crate) fn load<T: Stored>(&self) -> io::Result<Vec<T>> {
        let mut records = Vec::new();
        for file in fs::read_dir(self.directory.join(T::DIRECTORY))? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                // A crash has come before the rename.
                fs::remove_file(&path)?;
                continue;
            }
            match read_record(&path) {
                Ok(record) => records.push(record),
                Err(problem) => self.set_aside(&path, &problem),
            }
        }
        Ok(records)
    }

    fn set_aside(&self, path: &Path, problem: &str) {
        let target = self.directory.join(DAMAGED).join(path.file_name().unwrap_or_default());
        match fs::rename(path, &target) {
            Ok(()) => log::error!("{} is damaged ({problem}): it is moved to {}", path.display(), target.display()),
            Err(error) => log::error!("{} is damaged ({problem}), and cannot be moved: {error}", path.display()),
        }
    }

    /// Whether the record of this id was set aside, at this start or an earlier one.
    pub(crate) fn is_damaged(&self, id: &str) -> bool {
        is_id(id) && self.directory.join(DAMAGED).join(format!("{id}.json")).exists()
    }

    /// Writes a record: after a crash, the file is the old or the new one.
    pub(crate) fn save<T: Stored>(&self, record: &T) -> io::Result<()> {
        let path = self.record_path::<T>(record.id());
        let json = serde_json::to_vec_pretty(record)?;
        replace(&path, &json)
    }

    /// Removes a record; one that is gone already is no error.
    pub(crate) fn forget<T: Stored>(&self, id: &str) -> io::Result<()> {
        remove(&self.record_path::<T>(id))
    }

    fn record_path<T: Stored>(&self, id: &str) -> PathBuf {
        self.directory.join(T::DIRECTORY).join(format!("{id}.json"))
    }

    /// Where the token of a sandbox is.
    pub(crate) fn token_path(&self, id: &str) -> PathBuf {
        self.directory.join(TOKENS).join(id)
    }

    /// Makes the token of a sandbox: 32 random bytes in hexadecimal.
    pub(crate) fn make_token(&self, id: &str) -> io::Result<String> {
        let token = random::hex::<32>()?;
        let mut file = private_file().create(true).truncate(true).open(self.token_path(id))?;
        file.write_all(token.as_bytes())?;
        file.sync_all()?;
        Ok(token)
    }

    pub(crate) fn token(&self, id: &str) -> io::Result<String> {
        let token = fs::read_to_string(self.token_path(id))?;
        if token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(token)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the token is damaged"))
        }
    }

    pub(crate) fn remove_token(&self, id: &str) {
        if let Err(error) = remove(&self.token_path(id)) {
            log::warn!("the token of sandbox {id} cannot be removed: {error}");
        }
    }

    /// The ids of all tokens, of which some may belong to no sandbox.
    pub(crate) fn token_ids(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(self.directory.join(TOKENS))?;
        Ok(names.filter_map(|file| file.ok()?.file_name().into_string().ok()).collect())
    }
}

/// Refuses a directory that others can use, and one that has files but none of a state directory.
fn check_ours(directory: &Path) -> Result<(), OpenError> {
    let failed = |cause| OpenError::Disk { path: directory.to_owned(), cause };
    let metadata = fs::metadata(directory).map_err(failed)?;
    if metadata.mode() & 0o077 != 0 || metadata.uid() != geteuid().as_raw() {
        return Err(OpenError::NotPrivate(directory.to_owned()));
    }
    let is_ours = [LOCK, INSTANCE].iter().any(|name| directory.join(name).exists());
    if !is_ours && fs::read_dir(directory).map_err(failed)?.next().is_some() {
        return Err(OpenError::NotOurs(directory.to_owned()));
    }
    Ok(())
}

/// Removes a state directory: what tl-host has written to it, files that begin with one of `more` too, and the directory
/// itself if nothing else is in it. Returns whether it was.
pub(crate) fn remove_all(directory: &Path, more: &[&str]) -> io::Result<bool> {
    let is_one_of = |name: &str, names: &[&str]| {
        names.iter().any(|own| name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if DIRECTORIES.contains(&name) {
            fs::remove_dir_all(entry.path())?;
        } else if is_one_of(name, &[LOCK, INSTANCE]) || is_one_of(name, more) {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error),
    }
}

/// Options to write a file that only its owner can read.
fn private_file() -> OpenOptions {
    let mut options = File::options();
    options.write(true).mode(0o600);
    options
}

/// Reads the id of the state directory, or makes it.
fn instance(directory: &Path) -> io::Result<String> {
    let path = directory.join(INSTANCE);
    match fs::read_to_string(&path) {
        Ok(text) if text.len() == 32 => Ok(text),
        Ok(_) => {
            let message = format!("{} is damaged: it must have 32 hexadecimal digits", path.display());
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let instance = random::hex::<16>()?;
            replace(&path, instance.as_bytes())?;
            Ok(instance)
        }
        Err(error) => Err(error),
    }
}

fn read_record<T: Stored>(path: &Path) -> Result<T, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let record: T = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if !is_id(record.id()) || record.id() != name {
        return Err(format!("it has the id {:?}", record.id()));
    }
    Ok(record)
}

/// Replaces a file: the bytes are on disk under a temporary name before that is renamed.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Two threads may replace the same file.
    let temporary = path.with_extension(format!("{}.new", random::hex::<4>()?));
    let written = write_and_rename(&temporary, path, bytes);
    if written.is_err() {
        // Best effort: the next start removes it too.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_and_rename(temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = private_file().create(true).truncate(true).open(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    sync_parent(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sandbox::model::Status;
    use crate::sandbox::testing::record;

    fn open() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state")).unwrap();
        (directory, store)
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_the_instance_stays() {
        let (directory, store) = open();
        let (a, mut b) = (record("a", Status::Pending), record("b", Status::Running));
        store.save(&a).unwrap();
        store.save(&b).unwrap();
        b.status = Status::Suspended;
        store.save(&b).unwrap();
        let instance = store.instance().to_owned();
        drop(store);
        let store = Store::open(&directory.path().join("state")).unwrap();
        let mut records = store.load::<Record>().unwrap();
        records.sort_by(|x, y| x.id.cmp(&y.id));
        assert_eq!((records, store.instance()), (vec![a.clone(), b], instance.as_str()));
        store.forget::<Record>(&a.id).unwrap();
        store.forget::<Record>(&a.id).unwrap();
        assert_eq!(store.load::<Record>().unwrap().len(), 1);
    }

    #[test]
    fn a_second_one_finds_the_directory_locked() {
        let (directory, _store) = open();
        let second = Store::open(&directory.path().join("state"));
        assert!(matches!(second, Err(OpenError::Locked(_))));
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_and_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let modes = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        fs::create_dir(&path).unwrap();
        for loose in [0o755, 0o1777, 0o701] {
            modes(loose);
            assert!(matches!(Store::open(&path), Err(OpenError::NotPrivate(_))), "{loose:o}");
            assert_eq!((mode(), fs::read_dir(&path).unwrap().count()), (loose, 0));
        }
        modes(0o700);
        fs::write(path.join("notes"), "mine").unwrap();
        assert!(matches!(Store::open(&path), Err(OpenError::NotOurs(_))));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        fs::remove_file(path.join("notes")).unwrap();
        drop(Store::open(&path).unwrap());
        fs::write(path.join("notes"), "mine").unwrap();
        drop(Store::open(&path).unwrap());
    }

    #[test]
    fn only_what_was_written_is_removed() {
        let (directory, store) = open();
        store.save(&record("a", Status::Running)).unwrap();
        store.make_token("a").unwrap();
        drop(store);
        let state = directory.path().join("state");
        for name in ["key", "key.5", "keys", "instance.12.new", "notes", "locksmith"] {
            fs::write(state.join(name), "x").unwrap();
        }
        assert!(!remove_all(&state, &["key"]).unwrap());
        let mut left: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["keys", "locksmith", "notes"]);
        left.iter().for_each(|name| fs::remove_file(state.join(name)).unwrap());
        assert!(remove_all(&state, &["key"]).unwrap() && !state.exists());
    }

    #[test]
    fn a_directory_whose_path_is_not_utf8_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join(std::ffi::OsStr::from_bytes(b"odd-\xff"));
        assert!(matches!(Store::open(&odd), Err(OpenError::NotUtf8(_))));
        // Also behind a link that has another name.
        std::os::unix::fs::symlink(&odd, directory.path().join("link")).unwrap();
        assert!(matches!(Store::open(&directory.path().join("link")), Err(OpenError::NotUtf8(_))));
    }

    #[test]
    fn damaged_files_are_set_aside_and_the_others_are_read() {
        let (directory, store) = open();
        let good = record("a", Status::Running);
        store.save(&good).unwrap();
        let sandboxes = directory.path().join("state/sandboxes");
        let text = serde_json::to_string(&good).unwrap();
        let id_of_another = text.replace(&good.id, &"b".repeat(21));
        let path_as_id = text.replace(&good.id, "../../../../etc/x");
        for (name, content) in [
            ("cccccccccccccccccccc1.json", ""),
            ("cccccccccccccccccccc2.json", text.get(..text.len() / 2).unwrap()),
            ("cccccccccccccccccccc3.json", "[]"),
            ("cccccccccccccccccccc4.json", id_of_another.as_str()),
            ("cccccccccccccccccccc5.json", path_as_id.as_str()),
            ("cccccccccccccccccccc6.json", "\0\0\0\0"),
            ("notes.txt", "x"),
        ] {
            fs::write(sandboxes.join(name), content).unwrap();
        }
        // A crash has come before the rename.
        fs::write(sandboxes.join("cccccccccccccccccccc7.new"), "{").unwrap();
        assert_eq!(store.load::<Record>().unwrap(), [good]);
        assert_eq!(fs::read_dir(&sandboxes).unwrap().count(), 1);
        assert_eq!(fs::read_dir(directory.path().join("state/damaged")).unwrap().count(), 7);
    }

    #[test]
    fn everything_is_readable_by_its_owner_only() {
        let (directory, store) = open();
        store.save(&record("a", Status::Running)).unwrap();
        let token = store.make_token("a").unwrap();
        assert_eq!(store.token("a").unwrap(), token);
        let mode = |path: &str| fs::metadata(directory.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("state"), 0o700);
        for file in ["state/tokens/a", "state/lock", "state/instance"] {
            assert_eq!(mode(file), 0o600, "{file}");
        }
        assert_eq!(mode("state/sandboxes/aaaaaaaaaaaaaaaaaaaaa.json"), 0o600);
        fs::write(directory.path().join("state/tokens/a"), "short").unwrap();
        assert!(store.token("a").is_err());
        store.remove_token("a");
        assert!(store.token("a").is_err() && store.token_ids().unwrap().is_empty());
    }
}
