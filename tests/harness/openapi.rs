//! Compares responses of the daemon with its description, `docs/openapi.json`. Each test that gets a response that is not
//! described fails.
//!
//! Implements the part of JSON Schema that the description uses for responses. It is stricter in one point: a response
//! must not have a field that is not described.

use std::sync::LazyLock;

use serde_json::{Map, Value};

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../docs/openapi.json")).expect("docs/openapi.json is JSON"));

/// Headers that any response may have; `Vary` with `--cors-origin`.
const COMMON_HEADERS: [&str; 8] =
    ["connection", "content-length", "content-type", "date", "keep-alive", "server", "transfer-encoding", "vary"];

/// Codes of errors that are sent before an endpoint is found, besides those of `components/responses/Error`.
const CODES_WITHOUT_ENDPOINT: [&str; 2] = ["NOT_FOUND", "METHOD_NOT_ALLOWED"];

/// The description of the response to one request.
#[derive(Clone, Copy)]
pub struct Described {
    response: &'static Value,
    /// The request has no body in its response.
    is_head: bool,
    /// No endpoint has this method and path.
    is_unknown: bool,
}

impl Described {
    /// The description of a response with this status. `path` is below `/api/v1` and may have a query.
    pub fn find(method: &str, path: &str, status: u16) -> Described {
        let path = path.split('?').next().unwrap_or_default();
        let method = method.to_lowercase();
        let is_head = method == "head";
        let key = if is_head { "get" } else { &method };
        let paths = DOCUMENT["paths"].as_object().expect("an object");
        let mut found = paths.iter().filter(|(template, item)| matches(template, path) && item[key].is_object());
        // A path without a parameter comes before one with a parameter.
        let exact = paths.get(path).map(|item| &item[key]).filter(|operation| operation.is_object());
        let operation = exact.or_else(|| found.next().map(|(_, item)| &item[key]));
        let Some(operation) = operation else {
            let response = &DOCUMENT["components"]["responses"]["Error"];
            return Described { response, is_head, is_unknown: true };
        };
        let responses = operation["responses"].as_object().expect("an object");
        let response = responses.get(&status.to_string()).or_else(|| responses.get("default"));
        let response = resolve(response.expect("each operation has a default response"));
        Described { response, is_head, is_unknown: false }
    }

    /// The description of the response to a request whose text begins with these bytes. None if they do not begin with a
    /// method and a path of the API.
    pub fn find_for(request: &[u8], status: u16) -> Option<Described> {
        let line = request.split(|byte| *byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok())?;
        let [method, path, "HTTP/1.1"] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        Some(Described::find(method, path.strip_prefix("/api/v1")?, status))
    }

    /// Checks the headers.
    pub fn check_headers(self, headers: &[(String, String)]) -> Result<(), String> {
        let described = self.response.get("headers").and_then(Value::as_object);
        for (name, value) in headers {
            let lower = name.to_lowercase();
            if COMMON_HEADERS.contains(&lower.as_str()) || (self.is_unknown && lower == "allow") {
                continue;
            }
            let known = described.and_then(|all| all.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
            let (_, header) = known.ok_or_else(|| format!("the header {name} is not described"))?;
            let schema = resolve(&resolve(header)["schema"]);
            let value = match value.parse::<i64>() {
                Ok(number) if schema["type"] == "integer" => Value::from(number),
                _ => Value::from(value.as_str()),
            };
            check(schema, &value).map_err(|error| format!("the header {name}: {error}"))?;
        }
        Ok(())
    }

    /// Checks the content type, and the body if it is JSON.
    pub fn check_body(self, content_type: Option<&str>, body: &[u8]) -> Result<(), String> {
        let content = self.response.get("content").and_then(Value::as_object);
        let Some(content_type) = content_type else {
            return match (content, body) {
                (None, []) => Ok(()),
                _ => Err("a body without a content type, or none where one is described".to_owned()),
            };
        };
        let media_type = content_type.split(';').next().unwrap_or_default();
        let described = content.and_then(|content| content.get(media_type));
        let described = described.ok_or_else(|| format!("the content type {content_type} is not described"))?;
        if media_type != "application/json" || self.is_head {
            return Ok(());
        }
        let body: Value = serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
        if self.is_unknown && body["code"].as_str().is_some_and(|code| CODES_WITHOUT_ENDPOINT.contains(&code)) {
            return check(&DOCUMENT["components"]["schemas"]["Error"], &body);
        }
        check(&described["schema"], &body)
    }

    /// Checks an event of an event stream. An event without a name is a `message`.
    pub fn check_event(self, name: &str, data: &Value) -> Result<(), String> {
        let name = if name.is_empty() { "message" } else { name };
        let events = &self.response["content"]["text/event-stream"]["x-events"];
        let schema = events.get(name).ok_or_else(|| format!("the event {name} is not described"))?;
        check(schema, data).map_err(|error| format!("the event {name}: {error}: {data}"))
    }
}

fn matches(template: &str, path: &str) -> bool {
    let (template, path) = (template.split('/'), path.split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(wanted, segment)| wanted.starts_with('{') || wanted == segment)
}

/// What a reference stands for; anything else is returned as it is.
fn resolve(value: &'static Value) -> &'static Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(reference) => target(reference),
        None => value,
    }
}

fn target(reference: &str) -> &'static Value {
    let pointer = reference.strip_prefix('#').expect("a reference within the document");
    DOCUMENT.pointer(pointer).unwrap_or_else(|| panic!("{reference} does not exist"))
}

/// Whether the value is valid for the schema; the error says what is wrong.
fn check(schema: &'static Value, value: &Value) -> Result<(), String> {
    let rules = schema.as_object().expect("a schema is an object");
    for (keyword, rule) in rules {
        let is_valid = match keyword.as_str() {
            "$ref" => {
                check(target(rule.as_str().expect("a reference")), value)?;
                true
            }
            "type" => rule.as_array().map_or_else(|| is_type(rule, value), |all| all.iter().any(|t| is_type(t, value))),
            "const" => rule == value,
            "enum" => rule.as_array().expect("a list").contains(value),
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap_or_default()),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap_or_default()),
            "maxProperties" => value.as_object().is_none_or(|object| object.len() as u64 <= rule.as_u64().unwrap_or(0)),
            "required" => {
                let names = rule.as_array().expect("a list").iter().filter_map(Value::as_str);
                value.as_object().is_none_or(|object| names.into_iter().all(|name| object.contains_key(name)))
            }
            "properties" => {
                check_properties(rules, value)?;
                true
            }
            "items" => value.as_array().into_iter().flatten().try_for_each(|item| check(rule, item)).map(|()| true)?,
            "anyOf" => {
                let results = rule.as_array().expect("a list").iter().map(|schema| check(schema, value));
                let errors: Vec<String> = results.filter_map(Result::err).collect();
                if errors.len() == rule.as_array().map_or(0, Vec::len) {
                    return Err(errors.join("; "));
                }
                true
            }
            // `pattern`, `if` and `then` describe requests.
            "description" | "default" | "example" | "pattern" | "if" | "then" => true,
            other => panic!("tests/harness/openapi.rs does not know the keyword {other}"),
        };
        if !is_valid {
            let shown: String = value.to_string().chars().take(200).collect();
            return Err(format!("{shown} is not valid: {keyword}: {rule}"));
        }
    }
    Ok(())
}

fn is_type(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("unknown type {other}"),
    }
}

fn check_properties(rules: &'static Map<String, Value>, value: &Value) -> Result<(), String> {
    let Some(object) = value.as_object() else { return Ok(()) };
    let own = rules["properties"].as_object().expect("an object");
    let base = rules.get("$ref").and_then(Value::as_str).map(|reference| &target(reference)["properties"]);
    for (name, field) in object {
        match own.get(name) {
            Some(schema) => check(schema, field).map_err(|error| format!("{name}: {error}"))?,
            None if base.is_some_and(|base| base.get(name).is_some()) => {}
            None => return Err(format!("the field {name} is not described")),
        }
    }
    Ok(())
}

#[test]
fn a_response_that_is_not_described_is_found() {
    let list = |body: &str| {
        Described::find("GET", "/processes/7/stdout?tail=1", 200).check_body(Some("application/json"), body.as_bytes())
    };
    list(r#"{"pid":7,"lines":["x"],"line_count":1,"truncated":true}"#).expect("as described");
    for (body, part) in [
        (r#"{"pid":7,"lines":["x"]}"#, "required"),
        (r#"{"pid":7,"lines":["x"],"line_count":1,"more":1}"#, "the field more is not described"),
        (r#"{"pid":7,"lines":[1],"line_count":1}"#, "lines: 1 is not valid: type"),
        (r#"{"pid":7.5,"lines":[],"line_count":0}"#, "pid: 7.5 is not valid: type"),
        ("[", "not JSON"),
    ] {
        let error = list(body).unwrap_err();
        assert!(error.contains(part), "{body}: {error}");
    }
    let error = |method, path, status, code: &str| {
        let body = format!(r#"{{"error":"x","code":"{code}"}}"#);
        Described::find(method, path, status).check_body(Some("application/json"), body.as_bytes())
    };
    error("DELETE", "/processes/web", 404, "NOT_FOUND").expect("as described");
    error("DELETE", "/processes/web", 503, "OUT_OF_RESOURCES").expect("as described");
    error("PUT", "/processes/web", 405, "METHOD_NOT_ALLOWED").expect("as described");
    // A code of another endpoint, and one that only unknown paths have.
    error("DELETE", "/processes/web", 409, "NOT_RUNNING").unwrap_err();
    error("POST", "/processes/run", 404, "NOT_FOUND").unwrap_err();
    let described = Described::find("GET", "/processes/7/output/follow", 200);
    described.check_event("output", &serde_json::json!({"line": "x", "timestamp": 1, "stream": "stdout"})).expect("is");
    described.check_event("output", &serde_json::json!({"line": "x"})).unwrap_err();
    described.check_event("end", &serde_json::json!({})).unwrap_err();
    described.check_headers(&[("X-Accel-Buffering".to_owned(), "no".to_owned())]).expect("as described");
    described.check_headers(&[("X-Accel-Buffering".to_owned(), "yes".to_owned())]).unwrap_err();
    described.check_headers(&[("X-Other".to_owned(), "no".to_owned())]).unwrap_err();
}
