//! `GET /ports` and `GET /ports/{port}/wait`: which processes listen for TCP connections.

use std::time::Instant;

use serde::Serialize;

use crate::error::Error;
use crate::model::{Port, PortQuery};

use crate::http::api::{Api, parameters};
use crate::http::json::response;
use crate::http::message::{ApiError, Request, Response};

#[derive(Serialize)]
struct Listed {
    ports: Vec<Port>,
}

#[derive(Serialize)]
struct Waited {
    open: bool,
    port: Option<Port>,
}

/// The listening TCP sockets of the sandbox, by port.
pub(crate) fn list(api: &Api) -> Result<Response, ApiError> {
    Ok(response::of(200, Listed { ports: api.handle.ports()? }))
}

/// Waits until a process listens on the port and, with `http_path`, answers a request for that, or until the timeout.
pub(crate) fn wait(api: &Api, request: &Request<'_>, port: &str) -> Result<Response, ApiError> {
    let query = query(port, request.query("http_path"))?;
    let deadline = parameters::timeout(request.query("timeout").as_deref())?.map(|time| Instant::now() + time);
    let waker = request.waker()?;
    let watch = api.handle.watch_port(query, waker.clone().into())?;
    let port = loop {
        if let Some(result) = watch.try_take() {
            break Some(result?);
        }
        if !request.wait(&waker, deadline)? {
            break None;
        }
    };
    Ok(response::whole(200, &Waited { open: port.is_some(), port }))
}

fn query(port: &str, http_path: Option<String>) -> Result<PortQuery, ApiError> {
    let Some(number) = parameters::port(port) else {
        return Err(ApiError::invalid(format!("`port` in the path must be a number from 1 to 65535, not {port:?}")));
    };
    let query = PortQuery::new(number).map_err(Error::from)?;
    match http_path {
        Some(path) => query.answering_http(path).map_err(|error| Error::from(error).into()),
        None => Ok(query),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_paths_are_checked() {
        let path = |text: &str| Some(text.to_owned());
        assert_eq!(query("1", None).unwrap(), PortQuery::new(1).unwrap());
        assert_eq!(query("65535", path("/x")).unwrap().http_path(), Some("/x"));
        for port in ["", "0", "00", "65536", "70000", "-1", "+80", "80x", "1.5", "http"] {
            assert!(query(port, None).unwrap_err().to_string().contains("`port`"), "{port:?}");
        }
        for text in ["", "x", "/\r\n", "/a b"] {
            assert!(query("80", path(text)).unwrap_err().to_string().contains("`http_path`"), "{text:?}");
        }
    }

    #[test]
    fn an_answer_says_whether_the_port_is_open() {
        let json = |port: Option<Port>| serde_json::to_string(&Waited { open: port.is_some(), port }).unwrap();
        assert_eq!(json(None), r#"{"open":false,"port":null}"#);
    }
}
