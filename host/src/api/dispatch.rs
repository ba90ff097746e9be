//! Checks the key of a request and calls the function that answers it.

use tl_supervisor::http::message::{ApiError, Request, Response};
use tl_supervisor::http::server::Handler;

use crate::api::routes::{Endpoint, Routed, check_namespace, no_route, route};
use crate::api::{Api, answers, errors, keys, logs, metrics, openapi, sandboxes, snapshots};

impl Handler for Api {
    /// Without the right key the response is a 401, whatever else is wrong with the request.
    fn handle(&self, request: &mut Request<'_>) -> Result<Response, ApiError> {
        let segments = request.segments();
        let path: Vec<&str> = segments.iter().flatten().map(String::as_str).collect();
        let found = route(request.method(), &path);
        if !found.is_some_and(|found| found.endpoint.is_open()) {
            self.authorize(request)?;
        }
        let Some(found) = found else {
            if segments.is_none() {
                return Err(ApiError::no_route(request.path()));
            }
            return Err(no_route(request.method(), request.path(), &path));
        };
        check_namespace(found.namespace)?;
        if found.endpoint.is_long() {
            request.begin_long()?;
        }
        self.call(found, request)
    }
}

impl Api {
    fn authorize(&self, request: &Request<'_>) -> Result<(), ApiError> {
        if self.auth.allows(request.header("Authorization").as_deref()) {
            return Ok(());
        }
        if let Some(peer) = request.peer_addr() {
            log::debug!(event = "http.rejected", address:% = peer; "a request from {peer} has no valid API key");
        }
        Err(errors::unauthorized())
    }

    /// Calls the function of an endpoint.
    fn call(&self, routed: Routed<'_>, request: &mut Request<'_>) -> Result<Response, ApiError> {
        let Routed { endpoint, namespace, parameter } = routed;
        match endpoint {
            Endpoint::Create => sandboxes::create(self, request, namespace),
            Endpoint::List => sandboxes::list(self, request, namespace),
            Endpoint::Get => sandboxes::get(self, request, namespace, parameter),
            Endpoint::Update => sandboxes::update(self, request, namespace, parameter),
            Endpoint::Delete => sandboxes::delete(self, namespace, parameter),
            Endpoint::Suspend => sandboxes::suspend(self, request, namespace, parameter),
            Endpoint::Resume => sandboxes::resume(self, request, namespace, parameter),
            Endpoint::Copy => sandboxes::copy(self, request, namespace, parameter),
            Endpoint::Snapshot => snapshots::create(self, request, namespace, parameter),
            Endpoint::SnapshotsOf => snapshots::list(self, namespace, Some(parameter)),
            Endpoint::Snapshots => snapshots::list(self, namespace, None),
            Endpoint::GetSnapshot => snapshots::get(self, namespace, parameter),
            Endpoint::DeleteSnapshot => snapshots::delete(self, namespace, parameter),
            Endpoint::Logs => logs::logs(self, request, namespace, parameter),
            Endpoint::Processes => logs::processes(self, namespace, parameter),
            Endpoint::NotSupported(what) => Err(errors::missing(what)),
            Endpoint::Introspect => keys::introspect(),
            Endpoint::Health => keys::health(),
            Endpoint::Metrics => metrics::scrape(self, request),
            Endpoint::OpenApi => Ok(openapi::document()),
            Endpoint::Stop => self.stop(),
        }
    }

    /// Ends all sandboxes of all namespaces, and then the program.
    fn stop(&self) -> Result<Response, ApiError> {
        self.sandboxes.stop_all()?;
        (self.stopped)();
        answers::json(200, &answers::Empty {})
    }
}
