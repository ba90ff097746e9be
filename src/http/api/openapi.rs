//! `GET /openapi.json`: the OpenAPI description of the API, `docs/openapi.json`.
//!
//! `build.rs` removes the white space from the document and compresses it by byte pair encoding, which keeps the program
//! 20 kB smaller.

use crate::http::message::Response;

/// The document, compressed.
const CODED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/openapi.coded"));

/// For each value of a byte of [`CODED`], the two bytes that it stands for, or twice itself if it is part of the text.
const PAIRS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/openapi.pairs"));

/// The document as JSON.
pub(crate) fn document() -> Response {
    Response::json(200, expanded())
}

fn expanded() -> Vec<u8> {
    let mut text = Vec::new();
    // What the next byte stands for, with the first byte last.
    let mut rest = Vec::new();
    for code in CODED {
        rest.push(*code);
        while let Some(byte) = rest.pop() {
            match PAIRS.get(2 * usize::from(byte)..) {
                Some([first, second, ..]) if *first != byte => rest.extend([*second, *first]),
                _ => text.push(byte),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::http::api::routes::ROUTES;

    fn served() -> Value {
        serde_json::from_slice(document().bytes().unwrap()).unwrap()
    }

    #[test]
    fn the_served_document_is_the_committed_one() {
        let committed: Value = serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
        assert_eq!(served(), committed);
        assert!(!expanded().contains(&b'\n'), "white space is not removed");
    }

    #[test]
    fn the_document_has_the_methods_and_paths_of_the_table_of_routes_and_no_others() {
        let document = served();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            described.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
        }
        // Described already; its endpoint is added by another change. Remove these lines then.
        described.remove(&("GET".to_owned(), "/metrics".to_owned()));
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
