//! `tlctl top`: the processes and what they use, shown again and again.

use std::time::{Duration, Instant};

use super::error::Error;
use super::http::Client;
use super::json::Json;
use super::parse::Line;
use super::process::{Process, age};
use super::screen::{Cell, Column, Screen, cut, escape, print, print_json};
use super::usage;

/// Time between two updates, in seconds.
const DELAY: f64 = 2.0;

/// Lines above the processes: the summary and the heads of the columns. One more line stays empty, so that the terminal
/// does not scroll.
const LINES_ABOVE: usize = 3;

/// The columns of the list.
const COLUMNS: &[Column] = &[
    Column { head: "PID", is_fixed: true },
    Column { head: "NAME", is_fixed: false },
    Column { head: "STATUS", is_fixed: true },
    Column { head: "CPU%", is_fixed: true },
    Column { head: "TIME", is_fixed: true },
    Column { head: "MEMORY", is_fixed: true },
    Column { head: "COMMAND", is_fixed: false },
];

/// The CPU times of the processes at an update, for those at the next one.
#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    /// The PID of each process, and its CPU time in milliseconds.
    cpu: Vec<(u64, u64)>,
}

/// Shows the processes.
pub(crate) fn top(client: &Client, line: &Line) -> Result<u8, Error> {
    let delay = Duration::from_secs_f64(line.seconds("delay").unwrap_or(DELAY));
    let default = if Screen::of_stdout().height.is_some() { u64::MAX } else { 1 };
    let count = line.value("count").and_then(|text| text.parse().ok()).unwrap_or(default);
    let mut seen = Seen::default();
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
        let rows = screen.height.map_or(usize::MAX, |height| height.saturating_sub(LINES_ABOVE));
        let cells = rows_of(client, client.parse(&listing)?, rows, &mut seen)?;
        print(page(&screen, &cells, Process(client.parse(&about)?)).as_bytes())?;
    }
    Ok(0)
}

/// The cells of at most this many processes, each with its usage.
fn rows_of(client: &Client, listing: Json<'_>, most: usize, seen: &mut Seen) -> Result<Vec<Cell>, Error> {
    let before = std::mem::take(seen);
    let elapsed = before.at.map(|at| at.elapsed().as_secs_f64());
    seen.at = Some(Instant::now());
    let mut cells = Vec::new();
    let mut processes = listing.get("processes").members();
    loop {
        let process = processes.next();
        if !process.is_some() || cells.len() / COLUMNS.len() >= most {
            return Ok(cells);
        }
        let process = Process(process);
        if !process.is_running() && !process.is_managed() {
            continue;
        }
        let pid = process.pid();
        let body = match client.get(&format!("/processes/{pid}/usage")) {
            // It was forgotten meanwhile.
            Err(error) if error.has_code("NOT_FOUND") => continue,
            body => body?,
        };
        let usage = client.parse(&body)?;
        let cpu = usage::cpu(usage);
        seen.cpu.extend(cpu.map(|cpu| (pid, cpu)));
        let earlier = before.cpu.iter().find(|(known, _)| *known == pid).map(|(_, cpu)| *cpu);
        let used = [
            Cell::plain(&percent(cpu, earlier, elapsed)),
            Cell::plain(&cpu.map(usage::cpu_time).unwrap_or_default()),
            Cell::plain(&usage::memory(usage)),
        ];
        process.add_row_with(used, &mut cells);
    }
}

/// The CPU time since the last update as a part of the time that has passed; empty if that cannot be known yet.
fn percent(cpu: Option<u64>, earlier: Option<u64>, elapsed: Option<f64>) -> String {
    match (cpu, earlier, elapsed) {
        (Some(cpu), Some(earlier), Some(elapsed)) if cpu >= earlier && elapsed > 0.0 => {
            format!("{:.0}", (cpu - earlier) as f64 / elapsed / 10.0)
        }
        _ => String::new(),
    }
}

/// One update.
fn page(screen: &Screen, cells: &[Cell], about: Process<'_>) -> String {
    let summary = format!(
        "tl-init {}, up {}, {} running, {} in all",
        escape(&about.text("version")),
        age(about.number("uptime_secs").unwrap_or_default().saturating_mul(1000)),
        about.number("running_processes").unwrap_or_default(),
        about.number("total_processes").unwrap_or_default(),
    );
    let table = screen.table(COLUMNS, cells);
    let (Some(width), Some(_)) = (screen.width, screen.height) else { return format!("{summary}\n{table}") };
    // To the first line; each line is cleared to its end, and then the rest of the terminal, so that nothing flickers.
    let lines = format!("{}\n{table}", cut(&summary, width)).replace('\n', "\x1b[K\n");
    format!("\x1b[H{lines}\x1b[J")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_since_the_last_update_is_a_percentage() {
        assert_eq!(percent(Some(1500), Some(500), Some(2.0)), "50");
        assert_eq!(percent(Some(3500), Some(500), Some(2.0)), "150");
        for (cpu, earlier, elapsed) in [
            (Some(5), None, Some(1.0)),
            (None, Some(5), Some(1.0)),
            (Some(4), Some(5), Some(1.0)),
            (Some(5), Some(5), None),
        ] {
            assert_eq!(percent(cpu, earlier, elapsed), "");
        }
    }

    #[test]
    fn what_another_service_says_of_itself_is_escaped_and_can_have_any_number() {
        let about = Json::object(br#"{"version": "\u001b[2J", "uptime_secs": 18446744073709551615}"#).unwrap();
        let screen = Screen { width: None, height: None, has_colours: false };
        let text = page(&screen, &[], Process(about));
        assert!(text.starts_with("tl-init \\u{1b}[2J, up 213503982334d14h, 0 running"), "{text:?}");
    }
}
