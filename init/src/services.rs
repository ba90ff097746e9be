//! Services from files: `<config-dir>/services/*.json`, each a body of `POST /processes`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tl_supervisor::http::{BootService, parse_process};
use tl_supervisor::{Handle, Pid, ProcessSpec, Target, UnitId};

use crate::files;
use crate::report::Report;

/// The most files.
const MOST: usize = 1000;

/// What is gone or has changed has this long to end, all together, before the others are started.
const ENDING: Duration = Duration::from_secs(30);

/// The services, and what they are to be.
pub(crate) struct Services {
    dir: PathBuf,
    handle: Handle,
    report: Report,
    known: BTreeMap<String, Service>,
}

/// One file as it was when something was last started from it, or was to be.
struct Service {
    text: Result<Vec<u8>, String>,
    started: Result<(UnitId, Pid), String>,
    /// Why what the file says now cannot take its place.
    broken: Option<String>,
}

impl Services {
    /// None yet.
    pub(crate) fn new(config_dir: &Path, handle: Handle, report: Report) -> Services {
        Services { dir: config_dir.join("services"), handle, report, known: BTreeMap::new() }
    }

    /// Makes it what the files say: what is new, or could not be started, is started, in the order of the names; what is
    /// gone is ended; what has changed is both. What is as it was is left alone, whatever has become of it; so is what
    /// runs where its file says nothing that could be started any more.
    pub(crate) fn load(&mut self) {
        let files = match read_all(&self.dir) {
            Ok(files) => files,
            Err(error) => {
                self.report.failed("services", &format!("{}: {error}", self.dir.display()));
                log::error!("{}: {error}", self.dir.display());
                return;
            }
        };
        let mut ending = Vec::new();
        self.known.retain(|file, service| {
            let text = files.get(file);
            let same = text == Some(&service.text);
            let changed = text.filter(|_| !same && service.started.is_ok());
            service.broken = changed.and_then(|text| parse(text).err());
            if let Some(error) = &service.broken {
                log::error!("service {file}: {error}: left as it was");
                return true;
            }
            if let (false, Ok((unit, _))) = (same, &service.started) {
                ending.push((Target::Unit(*unit), self.handle.begin_kill(&Target::Unit(*unit))));
            }
            // What kept one from its start may be gone.
            same && service.started.is_ok()
        });
        // Their names and their ports are to be free.
        let deadline = Instant::now() + ENDING;
        for (unit, end) in ending {
            // Answered after a while even if its grace goes on.
            let _ = end.wait();
            let _ = self.handle.wait(&unit, Some(deadline.saturating_duration_since(Instant::now())));
        }
        // All are asked for before any is waited for: a program on a hung disk holds up nobody but itself.
        let new: Vec<_> = files.into_iter().filter(|(file, _)| !self.known.contains_key(file)).collect();
        let starting: Vec<_> = new
            .into_iter()
            .map(|(file, text)| {
                let start = parse(&text).map(|spec| self.handle.begin_start(spec));
                (file, text, start)
            })
            .collect();
        for (file, text, start) in starting {
            let started = start.and_then(|(unit, started)| match started.wait() {
                Ok(started) => Ok((unit, started.info.pid)),
                Err(error) => Err(error.to_string()),
            });
            if let Err(error) = &started {
                log::error!("service {file}: {error}");
            }
            self.known.insert(file, Service { text, started, broken: None });
        }
        self.report.set_services(self.known.iter().map(|(file, service)| told(file, service)).collect());
    }
}

fn parse(text: &Result<Vec<u8>, String>) -> Result<ProcessSpec, String> {
    parse_process(text.as_ref()?).map_err(|error| error.to_string())
}

fn told(file: &str, service: &Service) -> BootService {
    let (ok, detail, pid) = match (&service.started, &service.broken) {
        (Ok((_, pid)), None) => (true, "started".to_owned(), Some(*pid)),
        (Ok((_, pid)), Some(error)) => (false, format!("{error}: left as it was"), Some(*pid)),
        (Err(error), _) => (false, error.clone(), None),
    };
    BootService { file: file.to_owned(), ok, detail, pid }
}

/// The files by their names, each whole or with why it cannot be read. No folder is no service.
fn read_all(dir: &Path) -> io::Result<BTreeMap<String, Result<Vec<u8>, String>>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        result => result?,
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    // One with a dot in front is somebody's editor's.
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".json") && !name.starts_with('.')).collect();
    names.sort();
    if names.len() > MOST {
        log::error!("{}: {} services are left out: {MOST} are the most", dir.display(), names.len() - MOST);
        names.truncate(MOST);
    }
    let read = |name: String| {
        let text = files::read_regular(&dir.join(&name)).map_err(|error| error.to_string());
        (name, text)
    };
    Ok(names.into_iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_in_order_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_all(&dir.path().join("none")).unwrap().is_empty());
        for name in ["20.json", "10.json", ".hidden.json", "notes.txt"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::write(dir.path().join("30.json"), vec![b' '; (1 << 20) + 1]).unwrap();
        fs::create_dir(dir.path().join("40.json")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("50.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let files: Vec<_> = read_all(dir.path()).unwrap().into_iter().collect();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["10.json", "20.json", "30.json", "40.json", "50.json"]);
        assert_eq!(files[0].1, Ok(b"10.json".to_vec()));
        assert!(files[2].1.as_ref().is_err_and(|error| error.contains("longer")), "{:?}", files[2].1);
        assert!(files[3..].iter().all(|(_, text)| text.as_ref().is_err_and(|error| error.contains("regular"))));
    }
}
