//! `GET /openapi.json`: the OpenAPI description of the API, `docs/host-openapi.json`.

use tl_supervisor::http::message::Response;

/// The document. `host/openapi.json` is a link to it, which the package of this crate contains.
const DOCUMENT: &str = include_str!("../../openapi.json");

/// The document as JSON.
pub(crate) fn document() -> Response {
    Response::json(200, DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::api::routes::ROUTES;

    fn parsed() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn the_document_has_the_methods_and_paths_of_the_table_of_routes_and_no_others() {
        let document = parsed();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            described.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
        }
        let paths = ROUTES.iter().map(|route| {
            let prefix = if route.is_namespaced { "/v1/namespaces/{namespace}" } else { "" };
            (route.method.to_owned(), format!("{prefix}{}", route.template))
        });
        assert_eq!(described, paths.collect());
    }

    #[test]
    fn only_endpoints_that_need_no_key_are_described_as_open() {
        let document = parsed();
        for route in &ROUTES {
            let prefix = if route.is_namespaced { "/v1/namespaces/{namespace}" } else { "" };
            let path = format!("{prefix}{}", route.template);
            let operation = &document["paths"][&path][route.method.to_lowercase()];
            let is_open = operation.get("security").and_then(Value::as_array).is_some();
            assert_eq!(is_open, route.endpoint.is_open(), "{} {path}", route.method);
        }
        assert_eq!(document["security"][0]["key"], Value::Array(Vec::new()));
    }
}
