//! `tlctl top`: the processes, shown again and again.

use std::time::Duration;

use super::commands::list;
use super::error::Error;
use super::http::Client;
use super::json::Json;
use super::parse::Line;
use super::process::{Process, age};
use super::screen::{Screen, cut, escape, print, print_json};

/// Time between two updates, in seconds.
const DELAY: f64 = 2.0;

/// Lines above the processes: the summary and the heads of the columns. One more line stays empty, so that the terminal
/// does not scroll.
const LINES_ABOVE: usize = 3;

/// Shows the processes.
pub(crate) fn top(client: &Client, line: &Line) -> Result<u8, Error> {
    let delay = Duration::from_secs_f64(line.seconds("delay").unwrap_or(DELAY));
    let default = if Screen::of_stdout().height.is_some() { u64::MAX } else { 1 };
    let count = line.value("count").and_then(|text| text.parse().ok()).unwrap_or(default);
    for update in 0..count {
        if update > 0 {
            std::thread::sleep(delay);
        }
        let listing = client.get("/processes")?;
        if line.has("json") {
            print_json(&listing)?;
            continue;
        }
        let about = client.get("/info")?;
        // The size of the terminal may have changed.
        let screen = Screen::of_stdout();
        print(page(&screen, client.parse(&listing)?, Process(client.parse(&about)?)).as_bytes())?;
    }
    Ok(0)
}

/// One update.
fn page(screen: &Screen, listing: Json<'_>, about: Process<'_>) -> String {
    let summary = format!(
        "tl-init {}, up {}, {} running, {} in all",
        escape(&about.text("version")),
        age(about.number("uptime_secs").unwrap_or_default().saturating_mul(1000)),
        about.number("running_processes").unwrap_or_default(),
        about.number("total_processes").unwrap_or_default(),
    );
    let rows = screen.height.map_or(usize::MAX, |height| height.saturating_sub(LINES_ABOVE));
    let table = list(screen, listing, false, rows);
    let (Some(width), Some(_)) = (screen.width, screen.height) else { return format!("{summary}\n{table}") };
    // To the first line; each line is cleared to its end, and then the rest of the terminal, so that nothing flickers.
    let lines = format!("{}\n{table}", cut(&summary, width)).replace('\n', "\x1b[K\n");
    format!("\x1b[H{lines}\x1b[J")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_service_says_of_itself_is_escaped_and_can_have_any_number() {
        let listing = Json::object(b"{}").unwrap();
        let about = Json::object(br#"{"version": "\u001b[2J", "uptime_secs": 18446744073709551615}"#).unwrap();
        let screen = Screen { width: None, height: None, has_colours: false };
        let text = page(&screen, listing, Process(about));
        assert!(text.starts_with("tl-init \\u{1b}[2J, up 213503982334d14h, 0 running"), "{text:?}");
    }
}
