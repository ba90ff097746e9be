//! What must hold for every path, query, header value and body of a request (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use percent_encoding::percent_decode;
use serde_json::Value;

use crate::files;
use crate::http::api::routes::{ROUTES, no_route, route};
use crate::http::api::{Auth, Origin, parse_process, pty, run};
use crate::http::json::user::parse_user;
use crate::http::message::range::Range;
use crate::http::message::request_head;
use crate::logs::Cursor;
use crate::model::{MAX_MS, MAX_TIMEOUT, ProcessSpec, Target, UserSpec};

/// Segments and parameters are what a simple decoder finds. A path has at most one endpoint for each method. The path of
/// a file is absolute.
pub(crate) fn paths(input: &[u8]) {
    let text = [b"GET /", input, b" HTTP/1.1\r\n\r\n"].concat();
    let Ok(Some((head, length))) = request_head::parse(&text) else { return };
    if length != text.len() {
        return;
    }
    let decoded: Vec<Vec<u8>> =
        head.path[1..].split('/').map(|segment| percent_decode(segment.as_bytes()).collect()).collect();
    let segments = head.segments();
    let is_text = decoded.iter().all(|segment| std::str::from_utf8(segment).is_ok());
    assert_eq!(segments.is_some(), is_text, "{:?}", head.path);
    if let Some(segments) = &segments {
        assert!(segments.iter().map(|segment| segment.as_bytes()).eq(decoded.iter().map(Vec::as_slice)));
        check_route(&segments.iter().map(String::as_str).collect::<Vec<_>>(), &head.path);
    }
    for name in ["path", "user", "tail", "a", ""] {
        check_parameter(&head, name);
    }
    let path = head.query_bytes("path").unwrap_or_else(|| decoded.concat());
    files::invariants::file_path(&path, "/home/u");
}

fn check_route(segments: &[&str], path: &str) {
    let methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "get"];
    for method in methods {
        match route(method, segments) {
            Some((row, endpoint, parameter)) => {
                let found = &ROUTES[row];
                assert_eq!((found.method, found.endpoint), (method, endpoint));
                assert_eq!(found.template.split('/').count(), segments.len() - 1, "{path:?}");
                assert!(parameter.is_empty() || segments.contains(&parameter), "{parameter:?}");
                match Target::parse(parameter) {
                    Target::Pid(pid) => assert!(
                        pid == u64::MAX || parameter.trim_start_matches('0') == pid.to_string().trim_start_matches('0')
                    ),
                    Target::Name(name) => assert_eq!(name, parameter),
                    Target::Unit(unit) => panic!("{unit}"),
                }
            }
            None => {
                let others = methods.iter().any(|other| route(other, segments).is_some());
                assert_eq!(no_route(method, path, segments).status(), if others { 405 } else { 404 });
            }
        }
    }
}

fn check_parameter(head: &request_head::RequestHead, name: &str) {
    let decode = |text: &str| percent_decode(text.replace('+', " ").as_bytes()).collect::<Vec<u8>>();
    let pairs = head.query.split('&').filter(|pair| !pair.is_empty());
    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let value = pairs.find(|(key, _)| decode(key) == name.as_bytes()).map(|(_, value)| decode(value));
    let text = value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
    assert_eq!(head.query(name), text, "{name:?} of {:?}", head.query);
    // An empty pair is a parameter without a name, which no endpoint has.
    assert!(name.is_empty() || head.query_bytes(name) == value, "{name:?} of {:?}", head.query);
}

/// Each value of a header is read as its grammar says, or ignored or refused; what was read, printed again, is read to the
/// same.
pub(crate) fn header_values(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    range(&text);
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert!(text.len() >= cursor.to_string().len());
    }
    if let Ok(origin) = text.parse::<Origin>() {
        assert_eq!(origin.to_string(), text);
        assert!(
            text.is_ascii() && text.contains("://") && !text.contains(['*', ' ', '?', '#', '@', ',', '%']),
            "{text:?}"
        );
        assert!(text.matches('/').count() == 2 && text.to_ascii_lowercase() == text, "{text:?}");
    }
    authorization(input, &text);
    if let Ok(user) = parse_user(&text) {
        assert_eq!(user.validate(), Ok(()), "{user:?}");
        if let UserSpec::Uid { uid, gid: None } = user
            && !text.starts_with('{')
        {
            assert_eq!(text.parse(), Ok(uid));
        }
    }
}

fn range(text: &str) {
    let Some(range) = Range::parse(text) else {
        let plain = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        let is_number = |text: &str| text.len() < 10 && text.parse::<u32>().is_ok() && !text.starts_with('+');
        assert!(!plain.is_some_and(|(first, last)| last.is_empty() && is_number(first)), "{text:?}");
        return;
    };
    let printed = match range {
        Range::From(first, Some(last)) => format!("bytes={first}-{last}"),
        Range::From(first, None) => format!("bytes={first}-"),
        Range::Last(count) => format!("bytes=-{count}"),
    };
    assert_eq!(Range::parse(&printed), Some(range));
    assert!(text.trim_ascii().len() + 40 >= printed.len() && !text.contains(','));
    for length in [0, 1, 2, 10, 999, u64::MAX - 1, u64::MAX] {
        let wanted = |at: u64| match range {
            Range::From(first, last) => at >= first && last.is_none_or(|last| at <= last),
            Range::Last(count) => length - at <= count,
        };
        let found = range.within(length);
        if let Some(found) = &found {
            assert!(found.start < found.end && found.end <= length, "{range:?} of {length}: {found:?}");
            assert!(wanted(found.start) && wanted(found.end - 1));
            assert!(found.start == 0 || !wanted(found.start - 1));
            assert!(found.end == length || !wanted(found.end));
        } else {
            assert!((0..length.min(1000)).all(|at| !wanted(at)), "{range:?} of {length}");
        }
    }
}

fn authorization(input: &[u8], text: &str) {
    let (token, value) = input.split_at(input.len().min(usize::from(input.first().copied().unwrap_or(0) % 12)));
    let auth = Auth::Token(token.to_vec());
    let value = String::from_utf8_lossy(value);
    for value in [text, &value] {
        let sent = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let is_right = sent.is_some_and(|(_, sent)| sent.trim().as_bytes() == token) && !token.is_empty();
        assert_eq!(auth.allows(Some(value)), is_right, "{value:?} for {token:?}");
        assert!(!Auth::DenyAll.allows(Some(value)));
    }
    let is_plain = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    let right = format!("Bearer {}", String::from_utf8_lossy(token));
    assert!(!is_plain || auth.allows(Some(&right)), "{right:?}");
}

/// A body that is accepted says what the spec says, and nothing in the spec is invalid. White space and the order of
/// fields change nothing. An error is a short sentence.
pub(crate) fn json_bodies(input: &[u8]) {
    let value = serde_json::from_slice::<Value>(input).ok();
    let started = parse_process(input).map_err(|error| error.to_string());
    let run = run::spec_of(input);
    let opened = pty::spec_of(input);
    for (result, parse) in [
        (&started, (|json| parse_process(json).map_err(|error| error.to_string())) as fn(&[u8]) -> _),
        (&run, run::spec_of),
        (&opened, pty::spec_of),
    ] {
        match result {
            Ok(spec) => {
                // What is not UTF-8 is accepted in a field that is ignored.
                let Some(value) = &value else { continue };
                check_spec(spec, value);
                let again = serde_json::to_vec_pretty(value).unwrap();
                assert_eq!(parse(&again).as_ref(), Ok(spec), "{}", String::from_utf8_lossy(&again));
                assert!(parse(&[input, b"x"].concat()).is_err(), "text after the body");
            }
            Err(error) => {
                assert!(!error.is_empty() && error.len() <= 1200 + 12 * input.len(), "{} bytes: {error}", error.len());
                let is_object = value.as_ref().is_none_or(Value::is_object);
                assert!(is_object || !error.starts_with("`command`"), "{error}");
            }
        }
    }
    if let (Ok(started), Ok(run)) = (&started, &run) {
        assert_eq!((&started.command, &started.args, &started.env), (&run.command, &run.args, &run.env));
        assert_eq!((&started.working_dir, &started.user), (&run.working_dir, &run.user));
        assert_eq!(started.limits, run.limits);
        assert!(started.managed.is_none());
    }
}

fn check_spec(spec: &ProcessSpec, value: &Value) {
    let ProcessSpec { command, args, env, working_dir, user, timeout, managed, .. } = spec;
    assert_eq!(value["command"].as_str(), Some(&**command));
    let texts = |value: &Value| value.as_array().map_or(0, Vec::len);
    assert_eq!(args.len(), texts(&value["args"]));
    let limits = spec.limits.as_deref().copied().unwrap_or_default();
    for (number, name) in [
        (limits.memory_bytes, "memory_bytes"),
        (limits.memory_high_bytes, "memory_high_bytes"),
        (limits.cpu_weight, "cpu_weight"),
        (limits.processes, "processes"),
        (limits.open_files, "open_files"),
    ] {
        let sent = value["limits"][name].as_f64();
        assert_eq!(number.map(|number| number as f64), sent, "{name}");
        assert_ne!(number, Some(0));
    }
    let cpus = limits.cpus.map(|cpus| cpus.as_f64());
    assert_eq!(cpus.is_some(), value["limits"]["cpus"].is_number());
    assert!(cpus.is_none_or(|cpus| cpus >= 0.01));
    assert!(args.iter().enumerate().all(|(at, arg)| value["args"][at].as_str() == Some(arg)));
    assert_eq!(env.len(), value["env"].as_object().map_or(0, |env| env.len()));
    assert!(env.iter().all(|(key, text)| value["env"][key].as_str() == Some(text)));
    assert_eq!(working_dir.as_deref(), value["working_dir"].as_str());
    assert_eq!(user.is_some(), !value["user"].is_null());
    let keys = env.iter().flat_map(|(key, text)| [key.as_str(), text.as_str()]);
    let all = args.iter().map(String::as_str).chain(keys).chain([&**command]).chain(working_dir.as_deref());
    let length: usize = all.map(|text| (!text.contains('\0')).then_some(text.len()).unwrap()).sum();
    assert!(
        !command.is_empty() && spec.size() >= length && spec.size() <= length + 500 + 200 * (args.len() + env.len())
    );
    assert!(
        env.iter()
            .all(|(key, _)| !key.is_empty() && !key.contains(|letter: char| letter == '=' || letter.is_whitespace()))
    );
    assert!(user.as_ref().is_none_or(|user| user.validate().is_ok()));
    assert!(timeout.is_none_or(|timeout| timeout > Duration::ZERO && timeout <= MAX_TIMEOUT));
    if let Some(managed) = managed {
        let day = u64::from(u32::try_from(MAX_MS).unwrap());
        let restart = managed.restart;
        assert!(restart.initial_backoff_ms <= day && restart.max_backoff_ms <= day);
        assert!(managed.stop_grace <= Duration::from_millis(day));
        assert!(managed.name.as_deref().is_none_or(|name| Target::parse(name) == Target::Name(name.to_owned())));
        if let Some(health) = &managed.health {
            assert!(health.port > 0 && health.interval_ms > 0 && health.timeout_ms > 0 && health.failure_threshold > 0);
            assert!(health.interval_ms.max(health.timeout_ms).max(health.initial_delay_ms) <= day);
            assert!(health.path.as_ref().is_none_or(|path| path.starts_with('/') && !path.contains([' ', '\r', '\n'])));
        }
    }
}
