//! Serves a route of its own beside the process API: `cargo run --example routes`, then try
//!
//! ```text
//! curl 'http://127.0.0.1:9503/hello?name=you'
//! curl http://127.0.0.1:9503/api/v1/processes
//! ```
//!
//! Enter ends it.

use std::error::Error;
use std::io;
use std::time::Duration;

use tl_supervisor::http::message::{ApiError, Request, Response};
use tl_supervisor::http::server::{Handler, Options, Server};
use tl_supervisor::http::{Api, ApiOptions, Auth};
use tl_supervisor::{ProcessSpec, Supervisor, UserSpec};

/// The program's routes, before the process API.
pub struct Routes {
    /// Answers every request that is not for a route of the program.
    pub api: Api,
}

impl Handler for Routes {
    fn handle(&self, request: &mut Request<'_>) -> Result<Response, ApiError> {
        match (request.method(), request.path()) {
            ("GET", "/hello") => hello(request),
            // A path that the program knows with another method. Without this arm, the API would answer 404,
            // or 401 to a request without its token.
            (method, "/hello") => Err(ApiError::method_not_allowed(method, "/hello", "GET, HEAD")),
            // Everything else is the API's: its paths begin with `/api/v1/`, and it has the token checked.
            _ => self.api.handle(request),
        }
    }
}

/// Greets as JSON. This route needs no token: who may use it is the program's own decision. For one that needs the token
/// of the API, keep a clone of its `Auth` and ask `auth.allows(request.header("Authorization").as_deref())`.
fn hello(request: &Request<'_>) -> Result<Response, ApiError> {
    let name = request.query("name").unwrap_or_else(|| "world".to_owned());
    if name.is_empty() {
        return Err(ApiError::invalid("the query parameter `name` must not be empty"));
    }
    Ok(Response::json(200, serde_json::json!({ "hello": name }).to_string()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let logs = std::env::temp_dir().join(format!("routes.{}", std::process::id()));
    // Processes run as the user that runs this example, which needs no privilege.
    let supervisor = Supervisor::builder(&logs).default_user(UserSpec::current()).start()?;
    supervisor.handle().start(ProcessSpec::command("sleep").args(["60"]).build()?)?;

    // Without a token, an API must not listen on anything but loopback.
    let api = Api::new(supervisor.handle(), ApiOptions::new(Auth::AllowAll));
    let options = Options::new().max_connections(supervisor.max_connections());
    let server = Server::bind("127.0.0.1:9503".parse()?, Routes { api }, options)?;
    println!("listening on {}; Enter ends it", server.local_addr());
    io::stdin().read_line(&mut String::new())?;

    server.shutdown();
    supervisor.handle().shutdown(Duration::from_secs(5))?;
    drop(supervisor);
    std::fs::remove_dir_all(logs)?;
    Ok(())
}
