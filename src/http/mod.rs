//! The process API over HTTP, and the HTTP server that serves it.
//!
//! | module | what |
//! |---|---|
//! | [`server`] | accepts connections and serves any handler |
//! | [`message`] | requests and responses |
//! | [`ws`] | WebSockets |
//! | [`json`] | request bodies as types, with errors that name the field |
//!
//! [`Api`] is the handler that serves the process API. Private modules: `connection` (the socket, the table of
//! connections and memory limits, for `server`, `message` and `ws`) and `api` (routes, and a file for each resource).
//!
//! `connection`, `server`, `message` and `ws` know nothing of processes. A handler knows nothing of connections: it
//! gets a [`Request`](message::Request) and returns a [`Response`](message::Response) or an
//! [`ApiError`](message::ApiError).

mod api;
mod connection;
pub mod json;
pub mod message;
pub mod server;
pub mod ws;

#[cfg(any(test, fuzzing))]
pub(crate) use api::invariants;
pub use api::{
    Api, ApiOptions, Auth, BootReport, BootService, BootStep, EndAction, InvalidBody, Origin, SystemControl,
    answers_soon, parse_process,
};
pub use json::limits::parse_limits;
pub use json::user::parse_user;
pub use server::{Options, Server};
