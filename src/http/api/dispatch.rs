//! Checks the token of a request and calls the function that answers it.

use crate::http::api::rejections::Rejection;
use crate::http::api::routes::{Endpoint, ExpectedDuration, no_route, route};
use crate::http::api::{
    Api, Auth, about, attach, conditions, control, cors, daemon_events, errors, files, metrics, openapi, output, ports,
    processes, pty, run, system, tunnel, wait,
};
use crate::http::message::{ApiError, Request, Response};
use crate::http::server::Handler;
use crate::model::Target;

impl Handler for Api {
    fn handle(&self, request: &mut Request<'_>) -> Result<Response, ApiError> {
        if self.cors_origins.is_empty() { self.answer(request) } else { cors::handle(self, request, Api::answer) }
    }
}

impl Api {
    /// Answers one request. Without the right token the response is a 401, whatever else is wrong with the request.
    fn answer(&self, request: &mut Request<'_>) -> Result<Response, ApiError> {
        let segments = request.segments();
        let path: Vec<&str> = segments.iter().flatten().map(String::as_str).collect();
        let found = route(request.method(), &path);
        metrics::observe(request, found.map(|(row, endpoint, _)| (row, endpoint)));
        let is_open = found.is_some_and(|(_, endpoint, _)| endpoint.is_open());
        if !is_open {
            self.authorize(request)?;
        }
        let Some((_, endpoint, parameter)) = found else {
            if segments.is_none() {
                return Err(ApiError::no_route(request.path()));
            }
            return Err(no_route(request.method(), request.path(), &path));
        };
        conditions::check_coding(request)?;
        match endpoint.duration() {
            ExpectedDuration::Short => {}
            ExpectedDuration::Start => request.require_own_thread()?,
            ExpectedDuration::Unbounded => request.begin_long()?,
        }
        self.call(endpoint, parameter, request)
    }

    /// Checks that the request has the token. Without a token, checks that it is not one that a browser makes for a web
    /// page of another site, unless that is of a listed origin: any page could use the API otherwise.
    fn authorize(&self, request: &Request<'_>) -> Result<(), ApiError> {
        let sent = request.header("Authorization");
        if !self.auth.allows(sent.as_deref()) {
            let rejection = if sent.is_none() { Rejection::NoToken } else { Rejection::WrongToken };
            self.rejections.log(request, rejection);
            return Err(errors::unauthorized());
        }
        if matches!(self.auth, Auth::AllowAll) && cors::is_from_other_site(request, &self.cors_origins) {
            self.rejections.log(request, Rejection::OtherSite);
            return Err(errors::other_site());
        }
        Ok(())
    }

    /// Calls the function of an endpoint. `parameter` is the process or the session that the path names.
    fn call(&self, endpoint: Endpoint, parameter: &str, request: &mut Request<'_>) -> Result<Response, ApiError> {
        let target = Target::parse(parameter);
        match endpoint {
            Endpoint::Health => Ok(about::health()),
            Endpoint::Info => about::info(self),
            Endpoint::Boot => Ok(system::boot(self)),
            Endpoint::Metrics => Ok(metrics::scrape(self, request)),
            Endpoint::Shutdown => system::shutdown(self, request),
            Endpoint::OpenApi => openapi::document(),
            Endpoint::Start => processes::start(self, request),
            Endpoint::List => processes::list(self),
            Endpoint::Run => run::run(self, request),
            Endpoint::Get => processes::get(self, &target),
            Endpoint::Kill => control::kill(self, &target),
            Endpoint::Output(view) => output::read(self, request, &output::target(request, target)?, view),
            Endpoint::Follow(view) => output::follow(self, request, &output::target(request, target)?, view),
            Endpoint::Signal => control::signal(self, request, &target),
            Endpoint::Restart => control::restart(self, &target),
            Endpoint::Pause => control::pause(self, &target),
            Endpoint::Resume => control::resume(self, &target),
            Endpoint::WriteStdin => control::write_stdin(self, request, &target),
            Endpoint::CloseStdin => control::close_stdin(self, &target),
            Endpoint::Wait => wait::wait(self, request, &target),
            Endpoint::Usage => processes::usage(self, &target),
            Endpoint::ReadFile => files::read(self, request),
            Endpoint::WriteFile => files::write(self, request),
            Endpoint::RemoveFile => files::remove(self, request),
            Endpoint::ListFiles => files::list(self, request),
            Endpoint::OpenPty => pty::open(self, request),
            Endpoint::ListPtys => pty::list(self),
            Endpoint::Pty => pty::get(self, parameter),
            Endpoint::ResizePty => pty::resize(self, request, parameter),
            Endpoint::KillPty => pty::kill(self, parameter),
            Endpoint::AttachPty => attach::attach(self, request, parameter),
            Endpoint::Tunnel => tunnel::open(request),
            Endpoint::Events => daemon_events::stream(self, request),
            Endpoint::Ports => ports::list(self),
            Endpoint::WaitPort => ports::wait(self, request, parameter),
        }
    }
}
