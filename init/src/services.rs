//! Services from files: `<config-dir>/services/*.json`, each a body of `POST /processes`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tl_os::regular_file;
use tl_supervisor::http::{BootService, parse_process};
use tl_supervisor::{Handle, Pid, ProcessSpec, Target, UnitId};

use crate::files::MAX_LENGTH;
use crate::report::Report;

/// Maximum number of service files.
const MAX_SERVICES: usize = 1000;

/// How long to wait, in total, for the end of services whose files were removed or changed.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// The services, and the state of their files.
pub(crate) struct Services {
    dir: PathBuf,
    handle: Handle,
    report: Report,
    known: BTreeMap<String, Service>,
}

/// A service file, and the unit that was started from it.
struct Service {
    /// The content of the file at the last attempt to start it, or why it could not be read.
    text: Result<Vec<u8>, String>,
    /// The unit, or why it could not be started.
    started: Result<(UnitId, Pid), String>,
    /// Why the present content of the file is not valid, while the unit of the previous content is kept.
    invalid: Option<String>,
}

impl Services {
    /// No services yet.
    pub(crate) fn new(config_dir: &Path, handle: Handle, report: Report) -> Services {
        Services { dir: config_dir.join("services"), handle, report, known: BTreeMap::new() }
    }

    /// Reads the files, and starts and ends services accordingly.
    ///
    /// A service whose file is new, or which could not be started before, is started; one whose file was removed is
    /// ended; one whose file was changed is ended and started again. A service whose file is the same is left
    /// unchanged, whatever its state. So is a running one whose file is no longer valid. Services are started in the
    /// order of their file names.
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
            service.invalid = changed.and_then(|text| parse(text).err());
            if let Some(error) = &service.invalid {
                log::error!("service {file}: {error}; the running service is kept");
                return true;
            }
            if let (false, Ok((unit, _))) = (same, &service.started) {
                ending.push((Target::Unit(*unit), self.handle.begin_kill(&Target::Unit(*unit))));
            }
            // A service that could not be started is tried again.
            same && service.started.is_ok()
        });
        // Wait until their names and ports are free.
        let deadline = Instant::now() + END_TIMEOUT;
        for (unit, end) in ending {
            // The answer comes after 2 s at most, even while the grace continues.
            let _ = end.wait();
            let _ = self.handle.wait(&unit, Some(deadline.saturating_duration_since(Instant::now())));
        }
        // All starts begin before the first is awaited: a program on a disk that hangs holds up only itself.
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
            self.known.insert(file, Service { text, started, invalid: None });
        }
        self.report.set_services(self.known.iter().map(|(file, service)| report_of(file, service)).collect());
    }
}

fn parse(text: &Result<Vec<u8>, String>) -> Result<ProcessSpec, String> {
    parse_process(text.as_ref()?).map_err(|error| error.to_string())
}

fn report_of(file: &str, service: &Service) -> BootService {
    let (ok, detail, pid) = match (&service.started, &service.invalid) {
        (Ok((_, pid)), None) => (true, "started".to_owned(), Some(*pid)),
        (Ok((_, pid)), Some(error)) => (false, format!("{error}; the running service is kept"), Some(*pid)),
        (Err(error), _) => (false, error.clone(), None),
    };
    BootService { file: file.to_owned(), ok, detail, pid }
}

/// The contents of the files by name, or why they cannot be read. None if the directory does not exist.
fn read_all(dir: &Path) -> io::Result<BTreeMap<String, Result<Vec<u8>, String>>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        result => result?,
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    // Files whose names begin with a dot are temporary files of editors.
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".json") && !name.starts_with('.')).collect();
    names.sort();
    if names.len() > MAX_SERVICES {
        log::error!(
            "{}: {} files beyond the first {MAX_SERVICES} are ignored",
            dir.display(),
            names.len() - MAX_SERVICES
        );
        names.truncate(MAX_SERVICES);
    }
    let read = |name: String| {
        let text = regular_file::read(&dir.join(&name), MAX_LENGTH).map_err(|error| error.to_string());
        (name, text)
    };
    Ok(names.into_iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_files_are_read_in_order_up_to_a_length() {
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
