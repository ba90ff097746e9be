//! The table of the API's endpoints.

use tl_supervisor::http::message::ApiError;

/// The namespace of a path that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Maximum length of a namespace in bytes.
const MAX_NAMESPACE: usize = 255;

/// Every method that some path takes, in the order in which `Allow` names them.
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// What the API of the cloud has and this one has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Pools,
    Archive,
    FileSystems,
}

/// The endpoints of the API. The sandbox or snapshot of a path is in [`Routed::parameter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `POST sandboxes`.
    Create,
    /// `GET sandboxes`.
    List,
    /// `GET sandboxes/{sandbox}`.
    Get,
    /// `PATCH sandboxes/{sandbox}`.
    Update,
    /// `DELETE sandboxes/{sandbox}`.
    Delete,
    /// `POST sandboxes/{sandbox}/suspend`.
    Suspend,
    /// `POST sandboxes/{sandbox}/resume`.
    Resume,
    /// `POST sandboxes/{sandbox}/snapshot`.
    Snapshot,
    /// `GET sandboxes/{sandbox}/snapshots`.
    SnapshotsOf,
    /// `POST sandboxes/{sandbox}/copy`.
    Copy,
    /// `GET sandboxes/{sandbox}/logs`.
    Logs,
    /// `GET sandboxes/{sandbox}/processes`.
    Processes,
    /// `GET snapshots`.
    Snapshots,
    /// `GET snapshots/{snapshot}`.
    GetSnapshot,
    /// `DELETE snapshots/{snapshot}`.
    DeleteSnapshot,
    /// 501.
    NotSupported(Missing),
    /// `POST platform/v1/keys/introspect`.
    Introspect,
    /// `GET health`.
    Health,
    /// `GET metrics`.
    Metrics,
    /// `GET openapi.json`.
    OpenApi,
    /// `POST stop`.
    Stop,
}

impl Endpoint {
    /// Whether the endpoint needs no API key.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Endpoint::Health | Endpoint::OpenApi)
    }

    /// Whether it takes as long as the engine, a sandbox or a disk does.
    pub(crate) fn is_long(self) -> bool {
        match self {
            Endpoint::Create
            | Endpoint::Update
            | Endpoint::Delete
            | Endpoint::Suspend
            | Endpoint::Resume
            | Endpoint::Snapshot
            | Endpoint::Copy
            | Endpoint::Logs
            | Endpoint::Processes
            | Endpoint::DeleteSnapshot
            | Endpoint::Stop => true,
            Endpoint::List
            | Endpoint::Get
            | Endpoint::SnapshotsOf
            | Endpoint::Snapshots
            | Endpoint::GetSnapshot
            | Endpoint::NotSupported(_)
            | Endpoint::Introspect
            | Endpoint::Health
            | Endpoint::Metrics
            | Endpoint::OpenApi => false,
        }
    }
}

/// A row of the table of endpoints.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    /// The path. A segment in braces, at most one in a path, is a parameter and stands for any segment.
    pub(crate) template: &'static str,
    pub(crate) endpoint: Endpoint,
    /// Whether the path may have `/v1/namespaces/{namespace}` before it.
    pub(crate) is_namespaced: bool,
}

impl Route {
    const fn new(method: &'static str, template: &'static str, endpoint: Endpoint) -> Route {
        Route { method, template, endpoint, is_namespaced: true }
    }

    /// An endpoint that belongs to no namespace.
    const fn global(method: &'static str, template: &'static str, endpoint: Endpoint) -> Route {
        Route { method, template, endpoint, is_namespaced: false }
    }

    const fn missing(method: &'static str, template: &'static str, what: Missing) -> Route {
        Route::new(method, template, Endpoint::NotSupported(what))
    }

    /// The value of the parameter in a path; empty if the template has none. None if the path does not match.
    fn parameter<'p>(&self, path: &[&'p str]) -> Option<&'p str> {
        let mut value = "";
        let mut segments = path.iter();
        for wanted in self.template.split('/').skip(1) {
            let segment = segments.next()?;
            if wanted.starts_with('{') && !segment.is_empty() {
                value = segment;
            } else if wanted != *segment {
                return None;
            }
        }
        segments.next().is_none().then_some(value)
    }
}

/// Every endpoint of the API, once. No two rows match the same method and path.
pub(crate) static ROUTES: [Route; 31] = [
    Route::new("POST", "/sandboxes", Endpoint::Create),
    Route::new("GET", "/sandboxes", Endpoint::List),
    Route::new("GET", "/sandboxes/{sandbox}", Endpoint::Get),
    Route::new("PATCH", "/sandboxes/{sandbox}", Endpoint::Update),
    Route::new("DELETE", "/sandboxes/{sandbox}", Endpoint::Delete),
    Route::new("POST", "/sandboxes/{sandbox}/suspend", Endpoint::Suspend),
    Route::new("POST", "/sandboxes/{sandbox}/resume", Endpoint::Resume),
    Route::new("POST", "/sandboxes/{sandbox}/snapshot", Endpoint::Snapshot),
    Route::new("GET", "/sandboxes/{sandbox}/snapshots", Endpoint::SnapshotsOf),
    Route::new("POST", "/sandboxes/{sandbox}/copy", Endpoint::Copy),
    Route::new("GET", "/sandboxes/{sandbox}/logs", Endpoint::Logs),
    Route::new("GET", "/sandboxes/{sandbox}/processes", Endpoint::Processes),
    Route::new("GET", "/snapshots", Endpoint::Snapshots),
    Route::new("GET", "/snapshots/{snapshot}", Endpoint::GetSnapshot),
    Route::new("DELETE", "/snapshots/{snapshot}", Endpoint::DeleteSnapshot),
    Route::missing("GET", "/archived-sandboxes", Missing::Archive),
    Route::missing("GET", "/archived-sandboxes/{sandbox}", Missing::Archive),
    Route::missing("GET", "/sandbox-pools", Missing::Pools),
    Route::missing("POST", "/sandbox-pools", Missing::Pools),
    Route::missing("GET", "/sandbox-pools/{pool}", Missing::Pools),
    Route::missing("PUT", "/sandbox-pools/{pool}", Missing::Pools),
    Route::missing("DELETE", "/sandbox-pools/{pool}", Missing::Pools),
    Route::missing("POST", "/sandbox-pools/{pool}/sandboxes", Missing::Pools),
    Route::missing("GET", "/sandboxes/{sandbox}/file_systems", Missing::FileSystems),
    Route::missing("POST", "/sandboxes/{sandbox}/file_systems", Missing::FileSystems),
    Route::missing("DELETE", "/sandboxes/{sandbox}/file_systems", Missing::FileSystems),
    Route::global("POST", "/platform/v1/keys/introspect", Endpoint::Introspect),
    Route::global("GET", "/health", Endpoint::Health),
    Route::global("GET", "/metrics", Endpoint::Metrics),
    Route::global("GET", "/openapi.json", Endpoint::OpenApi),
    Route::global("POST", "/stop", Endpoint::Stop),
];

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Routed<'p> {
    pub(crate) endpoint: Endpoint,
    pub(crate) namespace: &'p str,
    /// The sandbox or snapshot; empty if the path has none.
    pub(crate) parameter: &'p str,
}

/// The endpoint with this method and this path. A HEAD request has the method GET here.
pub(crate) fn route<'p>(method: &str, path: &[&'p str]) -> Option<Routed<'p>> {
    let (namespace, path) = match path {
        ["v1", "namespaces", namespace, path @ ..] => (Some(*namespace), path),
        path => (None, path),
    };
    ROUTES.iter().find_map(|route| {
        if route.method != method || (namespace.is_some() && !route.is_namespaced) {
            return None;
        }
        let parameter = route.parameter(path)?;
        Some(Routed { endpoint: route.endpoint, namespace: namespace.unwrap_or(DEFAULT_NAMESPACE), parameter })
    })
}

/// The error for a path that [`route`] does not find: 405 if it takes other methods, else 404.
pub(crate) fn no_route(method: &str, path: &str, segments: &[&str]) -> ApiError {
    let known = METHODS.iter().filter(|method| route(method, segments).is_some());
    let names = known.flat_map(|method| match *method {
        "GET" => vec!["GET", "HEAD"],
        method => vec![method],
    });
    let allowed = names.collect::<Vec<_>>().join(", ");
    if allowed.is_empty() {
        return ApiError::no_route(path);
    }
    ApiError::method_not_allowed(method, path, &allowed)
}

/// Checks the namespace of a path.
///
/// # Errors
/// 400 if it is empty, too long, or has control characters.
pub(crate) fn check_namespace(namespace: &str) -> Result<(), ApiError> {
    if namespace.is_empty() || namespace.len() > MAX_NAMESPACE || namespace.contains(char::is_control) {
        let message =
            format!("the namespace must have 1 to {MAX_NAMESPACE} characters, none of them a control character");
        return Err(ApiError::invalid(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed<'p>(method: &str, path: &'p str) -> Option<Routed<'p>> {
        route(method, &path.split('/').collect::<Vec<_>>())
    }

    #[test]
    fn a_path_that_is_made_of_a_template_finds_its_row_in_both_forms() {
        for route in &ROUTES {
            let path = route.template.trim_start_matches('/').replace(['{', '}'], "");
            let found = routed(route.method, &path).unwrap();
            assert_eq!((found.endpoint, found.namespace), (route.endpoint, "default"), "{path}");
            let path = format!("v1/namespaces/team/{path}");
            let found = routed(route.method, &path).map(|found| (found.endpoint, found.namespace));
            assert_eq!(found, route.is_namespaced.then_some((route.endpoint, "team")), "{path}");
        }
    }

    #[test]
    fn the_parameter_is_the_sandbox_or_the_snapshot() {
        assert_eq!(routed("GET", "sandboxes/my-env").unwrap().parameter, "my-env");
        assert_eq!(routed("POST", "v1/namespaces/a/sandboxes/x/copy").unwrap().parameter, "x");
        assert_eq!(routed("DELETE", "snapshots/y").unwrap().parameter, "y");
        assert_eq!(routed("GET", "sandboxes").unwrap().parameter, "");
    }

    #[test]
    fn unknown_paths_are_404_and_unknown_methods_405() {
        let refused = |method: &str, path: &str| {
            let segments: Vec<&str> = path.split('/').collect();
            assert_eq!(routed(method, path), None, "{path}");
            no_route(method, path, &segments)
        };
        for path in
            ["", "v1", "v1/namespaces/a", "sandboxes/x/y", "sandboxes/", "v1/namespaces/a/health", "api/v1/info"]
        {
            assert_eq!(refused("GET", path).code(), "NOT_FOUND", "{path}");
        }
        for (method, path, right) in [
            ("PUT", "sandboxes", "GET, HEAD, POST"),
            ("POST", "v1/namespaces/a/sandboxes/x", "GET, HEAD, PATCH, DELETE"),
            ("GET", "sandboxes/x/suspend", "POST"),
            ("POST", "health", "GET, HEAD"),
        ] {
            let error = refused(method, path);
            assert!(error.status() == 405 && error.to_string().ends_with(right), "{path}: {error}");
        }
    }

    #[test]
    fn all_of_the_archive_is_not_supported() {
        for path in ["archived-sandboxes", "archived-sandboxes/x", "v1/namespaces/a/archived-sandboxes/x"] {
            let found = routed("GET", path).map(|found| found.endpoint);
            assert_eq!(found, Some(Endpoint::NotSupported(Missing::Archive)), "{path}");
        }
    }

    #[test]
    fn a_namespace_is_not_empty() {
        assert!(check_namespace("default").is_ok() && check_namespace(&"a".repeat(255)).is_ok());
        for wrong in ["", "a\nb", &"a".repeat(256)] {
            assert!(check_namespace(wrong).is_err(), "{wrong:?}");
        }
    }
}
