//! `tl-host stop --all`: ends all sandboxes. If tl-host runs, it does that itself and ends; else this process does. With
//! `--purge`, nothing stays in the engine or on disk.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use ureq::Agent;

use crate::engine::{Engine, EngineError};
use crate::program::config::Config;
use crate::program::key;
use crate::program::outcome::Failure;
use crate::program::setup::{self, ADDRESS_FILE};
use crate::sandbox::error::OpenError;
use crate::sandbox::{LABEL_INSTANCE, Sandboxes, Settings, is_image_name};

/// Time for all sandboxes to be ended by tl-host.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

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
    let settings = Settings { warm: 0, ..setup::settings(config, state_dir.clone())? };
    match Sandboxes::open(engine.clone(), settings) {
        Ok(sandboxes) => sandboxes.stop_all().map_err(|error| Failure::Failed(error.to_string()))?,
        Err(OpenError::Locked(_)) => ask(config, &state_dir).map_err(Failure::Failed)?,
        Err(error) => return Err(setup::not_opened(&error)),
    }
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
    fs::remove_dir_all(state_dir).map_err(failed)
}

/// Has the tl-host that runs end all sandboxes, and itself.
fn ask(config: &Config, state_dir: &Path) -> Result<(), String> {
    let key = match &config.key_file {
        Some(path) => key::read(path).map_err(|error| format!("--key-file: {error}"))?,
        None => key::read(&state_dir.join(key::FILE))?,
    };
    let path = state_dir.join(ADDRESS_FILE);
    let address = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let agent: Agent = Agent::config_builder().proxy(None).timeout_global(Some(TIMEOUT)).build().into();
    let request = agent.post(format!("http://{}/stop", address.trim()));
    let sent = request.header("Authorization", format!("Bearer {key}")).send_empty();
    sent.map(drop).map_err(|error| format!("the tl-host that runs at {} does not stop: {error}", address.trim()))
}
