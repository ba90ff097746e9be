//! `tl-host stop --all`: ends all sandboxes. If tl-host runs, it does that itself and ends; else this process does. With
//! `--purge`, nothing stays in the engine or on disk.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::{Engine, EngineError};
use crate::program::config::Config;
use crate::program::outcome::Failure;
use crate::program::{address, doctor, key, setup};
use crate::sandbox::error::OpenError;
use crate::sandbox::{LABEL_INSTANCE, Sandboxes, Settings, is_image_name, remove_all};

/// Time for all sandboxes to be ended by tl-host.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Maximum length of its answer, in bytes.
const LONGEST_ANSWER: u64 = 64 << 10;

pub(crate) fn stop(config: &Config) -> Result<(), Failure> {
    if !config.all {
        let message = "stop needs --all: it ends all sandboxes. SIGTERM ends tl-host only, and its sandboxes go on";
        return Err(Failure::Usage(message.to_owned()));
    }
    let state_dir = setup::state_dir(config)?;
    if !state_dir.exists() {
        return Ok(());
    }
    let engine = setup::engine(config);
    // Nothing is started: no tl-init is needed.
    let settings = Settings { warm: 0, ..setup::settings(config, state_dir.clone(), PathBuf::new()) };
    match Sandboxes::open(engine.clone(), settings) {
        Ok(sandboxes) => sandboxes.stop_all().map_err(|error| Failure::Failed(error.to_string()))?,
        Err(OpenError::Locked(_)) => ask(config, &state_dir).map_err(Failure::Failed)?,
        Err(error) => return Err(setup::not_opened(&error)),
    }
    doctor::remove_left(&engine);
    if config.purge { purge(&engine, &state_dir).map_err(Failure::Failed) } else { Ok(()) }
}

/// Removes the snapshots and the state directory. No sandbox is left.
fn purge(engine: &Engine, state_dir: &Path) -> Result<(), String> {
    let refused = |error: EngineError| error.to_string();
    let failed = |error: io::Error| format!("{}: {error}", state_dir.display());
    let instance = fs::read_to_string(state_dir.join("instance")).map_err(failed)?;
    for image in engine.images((LABEL_INSTANCE, instance.trim())).map_err(refused)? {
        for name in image.names.iter().filter(|name| is_image_name(name)) {
            engine.remove_image(name).map_err(refused)?;
        }
    }
    if !remove_all(state_dir, &[key::FILE, address::FILE]).map_err(failed)? {
        log::warn!("{} stays: it has files that are not of tl-host", state_dir.display());
    }
    Ok(())
}

/// Has the tl-host that runs end all sandboxes, and itself.
fn ask(config: &Config, state_dir: &Path) -> Result<(), String> {
    let key = match &config.key_file {
        Some(path) => key::read(path).map_err(|error| format!("--key-file: {error}"))?,
        None => key::read(&state_dir.join(key::FILE))?,
    };
    let (address, stream) = address::connect(state_dir)?;
    match post_stop(stream, address, &key) {
        Ok((200, _)) => Ok(()),
        Ok((_, sentence)) => Err(format!("the tl-host that runs at {address} does not stop: {sentence}")),
        Err(error) => Err(format!("the tl-host that runs at {address} does not stop: {error}")),
    }
}

/// The status of the answer to `POST /stop`, and its sentence if it is an error.
fn post_stop(mut stream: TcpStream, address: SocketAddr, key: &str) -> io::Result<(u16, String)> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    // With HTTP/1.0 the body ends with the connection.
    write!(
        stream,
        "POST /stop HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not valid HTTP");
    let answer = String::from_utf8(answer).map_err(|_| invalid())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(invalid)?;
    let error: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let sentence = error.get("error").and_then(serde_json::Value::as_str);
    Ok((status, sentence.map_or_else(|| format!("it answers with the status {status}"), str::to_owned)))
}
