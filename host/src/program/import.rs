//! `tl-host import DIR|TAR --name NAME`: makes an image of a root file system.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use tl_os::random;

use crate::engine::{Engine, EngineError};
use crate::program::config::Config;
use crate::program::outcome::{Failure, print};
use crate::program::setup;

/// The repository of an image that is not known to be complete.
const UNFINISHED: &str = "localhost/tl-import";

/// The tag of a name without one.
const DEFAULT_TAG: &str = "latest";

pub(crate) fn import(config: &Config, operands: &[OsString]) -> Result<(), Failure> {
    let [source] = operands else {
        return Err(Failure::Usage("import needs one directory or tar archive; - is standard input".to_owned()));
    };
    let Some(name) = &config.name else { return Err(Failure::Usage("import needs --name NAME".to_owned())) };
    let (repository, tag) = split(name);
    let source = Path::new(source);
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(format!("{}: {error}", source.display()));
    let engine = setup::engine(config);
    let imported = if source == Path::new("-") {
        engine.import(io::stdin().lock(), repository, tag)
    } else if source.is_dir() {
        import_directory(&engine, source, repository, tag).map_err(|error| failed(&error))?
    } else {
        engine.import(File::open(source).map_err(|error| failed(&error))?, repository, tag)
    };
    let id = imported.map_err(|error| Failure::Failed(error.to_string()))?;
    println_to_stdout(&format!("{repository}:{tag} {id}"));
    Ok(())
}

/// Has `tar` read the directory, with owners and extended attributes. The image gets its name only when `tar` has
/// succeeded: until then, another image may have that.
fn import_directory(
    engine: &Engine,
    source: &Path,
    repository: &str,
    tag: &str,
) -> io::Result<Result<String, EngineError>> {
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "-C"]).arg(source).args(["-c", "."]).stdin(Stdio::null());
    let mut tar = tar.stdout(Stdio::piped()).spawn()?;
    let output = tar.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let unfinished = random::hex::<8>()?;
    let imported = engine.import(output, UNFINISHED, &unfinished);
    let status = tar.wait()?;
    let id = match imported {
        Ok(id) => id,
        Err(error) => return Ok(Err(error)),
    };
    let name = format!("{UNFINISHED}:{unfinished}");
    let tagged = if status.success() { engine.tag(&name, repository, tag) } else { Ok(()) };
    if let Err(error) = engine.remove_image(&name) {
        log::warn!("the image {name} cannot be removed: {error}");
    }
    if !status.success() {
        return Err(io::Error::other(format!("tar has failed ({status}): no image is made")));
    }
    Ok(tagged.map(|()| id))
}

/// The repository and the tag of a name. A colon before the last slash belongs to the address of a registry.
fn split(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, DEFAULT_TAG),
    }
}

fn println_to_stdout(line: &str) {
    // A closed stdout is no reason to fail: the image is there.
    let _ = print(&format!("{line}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_repository_and_a_tag() {
        for (name, right) in [
            ("debian", ("debian", "latest")),
            ("debian:12", ("debian", "12")),
            ("localhost/a:b", ("localhost/a", "b")),
            ("localhost:5000/a", ("localhost:5000/a", "latest")),
        ] {
            assert_eq!(split(name), right);
        }
    }
}
