//! `GET /openapi.json`: the OpenAPI description of the API, `docs/openapi.json`.
//!
//! `build.rs` compresses it, which keeps the program 30 kB smaller.

use crate::http::message::{ApiError, Response};

/// The document without white space, compressed with zlib.
const COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/openapi.zlib"));

/// The document as JSON.
pub(crate) fn document() -> Result<Response, ApiError> {
    let expanded = miniz_oxide::inflate::decompress_to_vec_zlib(COMPRESSED);
    expanded.map(|json| Response::json(200, json)).map_err(|error| ApiError::internal(format!("openapi.json: {error}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::http::api::routes::ROUTES;

    fn served() -> Value {
        serde_json::from_slice(document().unwrap().bytes().unwrap()).unwrap()
    }

    #[test]
    fn the_served_document_is_the_committed_one() {
        let committed: Value = serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
        assert_eq!(served(), committed);
        assert!(!document().unwrap().bytes().unwrap().contains(&b'\n'), "white space is not removed");
    }

    #[test]
    fn the_document_has_the_methods_and_paths_of_the_table_of_routes_and_no_others() {
        let document = served();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            described.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
        }
        let routes = ROUTES.iter().map(|route| (route.method.to_owned(), route.template.to_owned()));
        assert_eq!(described, routes.collect());
    }

    #[test]
    fn only_endpoints_that_need_no_token_are_described_as_open() {
        let document = served();
        for route in &ROUTES {
            let operation = &document["paths"][route.template][route.method.to_lowercase()];
            let security = operation.get("security").and_then(Value::as_array);
            let has_bearer = security.is_none();
            assert_eq!(has_bearer, !route.endpoint.is_open(), "{} {}", route.method, route.template);
        }
        assert_eq!(document["security"][0]["bearer"], Value::Array(Vec::new()));
    }
}
