//! `tlctl events`: what has happened to processes, one event a line.

use std::io::{self, Write as _};

use super::error::Error;
use super::http::{Client, Request, encode};
use super::json::Json;
use super::parse::Line;
use super::process::Process;
use super::screen::{escape, print, print_json};

/// `tlctl events`.
pub(crate) fn events(client: &Client, line: &Line) -> Result<u8, Error> {
    let follow = line.has("follow");
    let mut path = format!("/events?follow={follow}&ports={}", line.has("ports"));
    if let Some(process) = line.value("process") {
        path += "&process=";
        path += &encode(process);
    }
    let request = Request { method: "GET", path: &path, last_event_id: Some("0"), ..Request::default() };
    let mut body = client.send(request)?.body;
    let mut is_down = false;
    while let Some(event) = body.next_event().map_err(|error| client.broken(&error))? {
        if event.data.is_empty() {
            continue;
        }
        is_down |= event.name == "daemon.shutdown";
        if line.has("json") {
            client.parse(&event.data)?;
            print_json(&with_type(&event.name, &event.data))?;
            continue;
        }
        let data = client.parse(&event.data)?;
        if event.name == "gap" {
            let lost = data.get("lost").number().unwrap_or_default();
            let _ = writeln!(io::stderr(), "tlctl: {lost} events are no longer kept");
            continue;
        }
        print(describe(&event.name, data).as_bytes())?;
    }
    // The daemon ends the stream when it has shut down.
    if follow && !is_down { Err(client.broken(&io::ErrorKind::UnexpectedEof.into())) } else { Ok(0) }
}

/// The data of an event, a JSON object, with the type of the event as its first member.
fn with_type(kind: &str, data: &[u8]) -> Vec<u8> {
    let members = data.trim_ascii().strip_prefix(b"{").unwrap_or_default().trim_ascii_start();
    let comma = if members.starts_with(b"}") { "" } else { "," };
    // A type of the API has no other characters, so nothing needs an escape.
    let kind: String =
        kind.chars().filter(|letter| letter.is_ascii_alphanumeric() || "._-".contains(*letter)).collect();
    [format!("{{\"event\":\"{kind}\"{comma}").as_bytes(), members].concat()
}

/// The line of an event.
fn describe(kind: &str, event: Json<'_>) -> String {
    let mut line = format!("{} {}", time(event.get("at").number().unwrap_or_default()), escape(kind));
    let mut about = event.get("name").text();
    let pid = event.get("pid").digits();
    if about.is_empty() {
        about = pid.to_owned();
    } else if !pid.is_empty() {
        about += &format!(" ({pid})");
    }
    if !about.is_empty() {
        line += &format!(" {}", escape(&about));
    }
    let mut more = Vec::new();
    if kind == "process.ended" {
        more.push(Process(event).ending().0);
        more.extend(event.get("reason").is("\"timed_out\"").then(|| "timed_out".to_owned()));
    }
    let mut members = event.members();
    loop {
        let (name, value) = (members.next(), members.next());
        if !name.is_some() {
            break;
        }
        let name = name.text();
        let is_known = ["at", "handle", "pid", "name"].contains(&name.as_str()) || kind == "process.ended";
        if is_known || !value.is_some() {
            continue;
        }
        let text = if value.digits().is_empty() { value.text() } else { value.digits().to_owned() };
        // These need no name to be understood.
        let is_plain = ["command", "reason", "health_status", "error", "last_error"].contains(&name.as_str());
        more.push(if is_plain { text } else { format!("{name} {text}") });
    }
    if !more.is_empty() {
        line += &format!(": {}", escape(&more.join(", ")));
    }
    line.push('\n');
    line
}

/// A time in milliseconds since 1970, in UTC, as in ISO 8601.
fn time(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    // The Gregorian calendar repeats every 400 years, of 146,097 days. Counted from a March, the leap day is the last day
    // of a year, and the lengths of the months follow one formula.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (hour, minute, second, ms) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1_000 % 60, of_day % 1_000);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_790_000_000_123, "2026-09-21T14:13:20.123Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn json_of_an_event_has_its_type() {
        for (kind, data, right) in [
            ("process.paused", r#"{"at":1,"pid":2}"#, r#"{"event":"process.paused","at":1,"pid":2}"#),
            ("gap", " { \"lost\": 3 }\n", r#"{"event":"gap","lost": 3 }"#),
            ("x\"\u{1b}\\", "{}", r#"{"event":"x"}"#),
        ] {
            assert_eq!(String::from_utf8(with_type(kind, data.as_bytes())).unwrap(), right);
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let line = |kind: &str, more: &str| {
            let data = format!("{{\"at\":0,\"handle\":7,{more}}}");
            let line = describe(kind, Json::object(data.as_bytes()).unwrap());
            line.strip_prefix("1970-01-01T00:00:00.000Z ").unwrap().strip_suffix('\n').unwrap().to_owned()
        };
        for (kind, more, right) in [
            (
                "process.started",
                r#""pid":12,"name":null,"command":"a\nb","restart_count":0"#,
                "process.started 12: a\\nb, restart_count 0",
            ),
            (
                "process.ended",
                r#""pid":12,"name":"web","exit_code":3,"signal":null,"oom_killed":false,"reason":"exited""#,
                "process.ended web (12): exit 3",
            ),
            (
                "process.ended",
                r#""pid":12,"name":null,"exit_code":null,"signal":9,"oom_killed":false,"reason":"timed_out""#,
                "process.ended 12: signal 9, timed_out",
            ),
            (
                "process.restarting",
                r#""pid":12,"name":"web","delay_ms":500,"reason":"exited""#,
                "process.restarting web (12): delay_ms 500, exited",
            ),
            ("process.stopped", r#""pid":null,"name":"web","last_error":null"#, "process.stopped web"),
            ("daemon.shutdown", r#""pid":null,"name":null"#, "daemon.shutdown"),
        ] {
            assert_eq!(line(kind, more), right);
        }
    }
}
