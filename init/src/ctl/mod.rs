//! `tl-init ctl`, or `tlctl`: a client of the API, for people and scripts. The same program as the daemon.
//!
//! | module | what |
//! |---|---|
//! | `table` | the commands and their options; everything below, the completions and the manual page follow from it |
//! | `parse`, `limit`, `help` | the command line; the value of `--limit`; the text of `--help` |
//! | `settings` | the address of the API and the token |
//! | `http`, `json` | a small blocking HTTP client; JSON that is read in place |
//! | `screen`, `process` | tables and colours; a process as text |
//! | `commands`, `logs`, `run`, `top`, `usage`, `events`, `ports` | what the commands do |
//! | `error` | errors and their exit status |

mod commands;
mod error;
mod events;
mod help;
mod http;
mod json;
mod limit;
mod logs;
mod parse;
mod ports;
mod process;
mod run;
mod screen;
mod settings;
mod table;
mod top;
mod usage;
mod wait;

use std::ffi::OsString;
use std::path::Path;

use error::Error;
use http::Client;
use parse::Line;
use screen::Screen;
use settings::Settings;
use table::Action;

use crate::role::Role;

/// The name of the program as a client.
const NAME: &str = "tlctl";

/// The arguments of the client, if this program was started as the client: as `tlctl`, or with the first argument `ctl`.
/// As PID 1 of a machine the program is the daemon in any case.
pub(crate) fn arguments() -> Option<Vec<OsString>> {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let is_client = Path::new(&name).file_name().is_some_and(|name| name == NAME);
    if !is_client && args.next()? != "ctl" {
        return None;
    }
    (Role::find() != Role::Machine).then(|| args.collect())
}

/// Runs the client; its exit status.
pub(crate) fn main(args: Vec<OsString>) -> u8 {
    crate::console::open();
    match run_line(args) {
        Ok(status) => status,
        Err(error) => {
            screen::print_error(error);
            error.exit_status()
        }
    }
}

fn run_line(args: Vec<OsString>) -> Result<u8, Error> {
    let line = parse::parse(args)?;
    if line.has("help") {
        return screen::print(help::help(line.command).as_bytes());
    }
    if line.has("version") {
        return screen::print(format!("{NAME} {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    }
    let Some(command) = line.command else { return Ok(crate::exit_status::FAILURE) };
    // Both last as long as the program.
    let line: &Line = Box::leak(Box::new(line));
    let client: &Client = Box::leak(Box::new(Client::new(Settings::read(line)?)));
    perform(command.action, client, line)
}

fn perform(action: Action, client: &'static Client, line: &Line) -> Result<u8, Error> {
    let screen = Screen::of_stdout();
    match action {
        Action::Ps => commands::ps(client, line, &screen),
        Action::Status => commands::status(client, line, &screen),
        Action::Logs => logs::logs(client, line),
        Action::Run => run::run(client, line),
        Action::Start if line.words.is_empty() => commands::start_again(client, line),
        Action::Start => run::start(client, line),
        Action::Stop => wait::stop(client, line),
        Action::Restart => commands::post_to_process(client, line, "/restart"),
        Action::Pause => commands::post_to_process(client, line, "/pause"),
        Action::Resume => commands::post_to_process(client, line, "/resume"),
        Action::Signal => commands::signal(client, line),
        Action::Wait => wait::wait(client, line),
        Action::Usage => usage::usage(client, line, &screen),
        Action::Top => top::top(client, line),
        Action::Events => events::events(client, line),
        Action::Ports => ports::ports(client, line, &screen),
        Action::Boot => commands::boot(client, line, &screen),
        Action::Shutdown => commands::shutdown(client, line),
    }
}
