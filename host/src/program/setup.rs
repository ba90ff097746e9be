//! What options mean for the engine and the sandboxes, for all subcommands.

use std::path::PathBuf;
use std::time::Duration;

use crate::engine::{Engine, EngineError};
use crate::program::config::Config;
use crate::program::outcome::Failure;
use crate::program::paths;
use crate::sandbox::Settings;
use crate::sandbox::error::OpenError;

/// How long a new sandbox may take until its tl-init answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// From SIGTERM to SIGKILL when a sandbox is ended: more than the grace of its tl-init.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// The state directory.
pub(crate) fn state_dir(config: &Config) -> Result<PathBuf, Failure> {
    let given = config.state_dir.clone().map_or_else(paths::state_dir, Ok).map_err(Failure::Failed)?;
    let path = std::path::absolute(&given).map_err(|error| Failure::Failed(format!("--state-dir: {error}")))?;
    paths::utf8("--state-dir", path).map_err(Failure::Failed)
}

/// The engine that the options name, or the one that is there.
pub(crate) fn engine(config: &Config) -> Engine {
    Engine::new(config.engine.clone().unwrap_or_default())
}

/// The static tl-init.
pub(crate) fn init(config: &Config) -> Result<PathBuf, Failure> {
    let init = match &config.init {
        Some(path) => paths::existing("--init", path),
        None => paths::init(),
    };
    init.map_err(Failure::Failed)
}

/// What the options say of sandboxes.
pub(crate) fn settings(config: &Config, state_dir: PathBuf, init: PathBuf) -> Settings {
    Settings {
        default_image: config.default_image.clone(),
        default_resources: crate::api::DEFAULT_RESOURCES,
        init,
        state_dir,
        ulimits: config.ulimits.clone(),
        runtime: config.runtime.clone(),
        warm: config.warm,
        start_limit: START_LIMIT,
        stop_grace: STOP_GRACE,
    }
}

/// Why the sandboxes cannot be managed, and what helps.
pub(crate) fn not_opened(error: &OpenError) -> Failure {
    Failure::Failed(match error {
        OpenError::Engine(EngineError::Unreachable { .. }) => format!(
            "{error}; on Debian, `apt install podman runc netavark aardvark-dns` and `systemctl start podman.socket` \
             bring one; `tl-host doctor` says more"
        ),
        error => error.to_string(),
    })
}
