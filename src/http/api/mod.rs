//! The process API (docs/api.md): the table of routes, and a file for each resource.
//!
//! | file | what |
//! |---|---|
//! | `routes`, `dispatch` | the table of endpoints; the token check and the call of an endpoint's function |
//! | `auth`, `cors` | who may use the API, and from which web pages |
//! | `errors`, `conditions`, `idempotency` | statuses and codes; headers that change a request's meaning |
//! | `about`, `system`, `system_control` | health, info, boot and shutdown; the interface to the serving program |
//! | `openapi` | the description of the API |
//! | `usage_metrics` | the usage of processes as metrics |
//! | `metrics` | the metrics, in the text formats of Prometheus |
//! | `processes`, `control`, `run` | processes; their signals, stdin, restart and end; one command from start to end |
//! | `output`, `events` | output as JSON, as bytes, and as server-sent events |
//! | `daemon_events` | what happens to processes, sessions and the daemon, as server-sent events |
//! | `ports` | which processes listen for TCP connections |
//! | `files`, `pty`, `attach`, `tunnel` | files; terminal sessions, and a client attached to one; TCP tunnels |

mod about;
mod attach;
mod auth;
mod conditions;
mod control;
mod cors;
mod daemon_events;
mod dispatch;
mod errors;
mod events;
mod files;
mod idempotency;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod metrics;
mod openapi;
mod output;
mod parameters;
mod ports;
mod processes;
mod pty;
mod rejections;
mod routes;
mod run;
mod system;
mod system_control;
mod tunnel;
mod usage_metrics;
mod wait;

use std::sync::Arc;
use std::time::Instant;

use crate::http::api::rejections::Rejections;
use crate::http::connection::memory::MemoryPool;
use crate::supervisor::Handle;

pub use auth::Auth;
pub use cors::Origin;
pub use processes::{InvalidBody, parse_process};
pub use routes::answers_soon;
pub use system_control::{BootReport, BootService, BootStep, EndAction, SystemControl};

/// Bytes that the inputs of all runs may hold until their commands have read them.
const RUN_INPUTS: usize = 64 << 20;

/// Bytes that all directory listings may hold. The largest possible listing fits.
const DIRECTORY_LISTINGS: usize = 64 << 20;

/// The process API of a supervisor, as a [`Handler`](crate::http::server::Handler).
///
/// ```
/// use tl_supervisor::http::{Api, ApiOptions, Auth, Options, Server};
/// use tl_supervisor::{Supervisor, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let api = Api::new(supervisor.handle(), ApiOptions::new(Auth::Token(b"secret".to_vec())));
/// let server = Server::bind("127.0.0.1:0".parse()?, api, Options::new())?;
/// println!("listening on {}", server.local_addr());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A program with routes of its own answers those first and passes all other requests on: see
/// [`Handler`](crate::http::server::Handler) and `examples/routes.rs`.
#[derive(Debug)]
pub struct Api {
    handle: Handle,
    /// When the API was created, for the uptime.
    created: Instant,
    auth: Auth,
    /// Origins of the web pages that may use the API.
    cors_origins: Vec<Origin>,
    /// Names of the processes whose usage is among the metrics.
    metrics_per_process: Vec<String>,
    rejections: Rejections,
    system: Option<Arc<dyn SystemControl>>,
    run_inputs: MemoryPool,
    listings: MemoryPool,
}

/// Who may use the API, and what it can do beyond the supervisor.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ApiOptions {
    auth: Auth,
    cors_origins: Vec<Origin>,
    metrics_per_process: Vec<String>,
    system: Option<Arc<dyn SystemControl>>,
}

impl ApiOptions {
    /// An API that `auth` protects, of a program that `POST /shutdown` cannot end.
    pub fn new(auth: Auth) -> ApiOptions {
        ApiOptions { auth, ..ApiOptions::default() }
    }

    /// Lets web pages of these origins use the API: preflights are answered without a token, and responses have the
    /// headers by which a browser lets the page read them. By default no page can read a response. This does not replace
    /// the token. Routes that a program adds in front of the API are not affected.
    ///
    /// ```
    /// use tl_supervisor::http::{ApiOptions, Auth};
    ///
    /// let options = ApiOptions::new(Auth::Token(b"secret".to_vec())).cors_origins(["http://localhost:3000".parse()?]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cors_origins(self, origins: impl Into<Vec<Origin>>) -> ApiOptions {
        ApiOptions { cors_origins: origins.into(), ..self }
    }

    /// Adds the usage of the managed processes with these names to the metrics, as series of their own. Each name adds
    /// eight series.
    pub fn metrics_per_process(self, names: impl IntoIterator<Item = impl Into<String>>) -> ApiOptions {
        ApiOptions { metrics_per_process: names.into_iter().map(Into::into).collect(), ..self }
    }

    /// What answers `GET /boot` and `POST /shutdown`.
    pub fn system(self, system: Arc<dyn SystemControl>) -> ApiOptions {
        ApiOptions { system: Some(system), ..self }
    }
}

impl Api {
    /// The API of the supervisor behind `handle`.
    #[must_use]
    pub fn new(handle: Handle, options: ApiOptions) -> Api {
        Api {
            handle,
            created: Instant::now(),
            auth: options.auth,
            cors_origins: options.cors_origins,
            metrics_per_process: options.metrics_per_process,
            rejections: Rejections::new(),
            system: options.system,
            run_inputs: MemoryPool::new(RUN_INPUTS),
            listings: MemoryPool::new(DIRECTORY_LISTINGS),
        }
    }
}
