//! `tl-host doctor`: what is missing on this machine, a line for each check, and how to get it.
//!
//! | file | what |
//! |---|---|
//! | `machine` | tl-init, the state directory, ports, limits |
//! | `engine` | the engine, its limits and the default image |
//! | `trial` | starts a container, and finds the settings with which one starts |
//! | `finding` | a line of the report |
//! | `left` | removes what a `doctor` that was killed has left |
//! | `elf` | what an ELF file says of itself |

mod elf;
mod engine;
mod finding;
mod left;
mod machine;
mod trial;

use crate::program::config::Config;
use crate::program::outcome::{Failure, print};
use finding::{Finding, Verdict};
pub(crate) use left::remove_left;

pub(crate) fn doctor(config: &Config) -> Result<(), Failure> {
    let mut missing = 0;
    let mut show = |finding: Finding| {
        missing += usize::from(finding.verdict == Verdict::Missing);
        let _ = print(&format!("{finding}\n"));
    };
    let init = machine::init(config, &mut show);
    machine::state_and_ports(config, &mut show);
    machine::descriptors(&mut show);
    if let (Some(found), Some(init)) = (engine::engine(config, init.as_deref(), &mut show), &init) {
        remove_left(&found.engine);
        show(trial::container(config, &found, init));
    }
    match missing {
        0 => Ok(()),
        1 => Err(Failure::Failed("1 thing is missing".to_owned())),
        missing => Err(Failure::Failed(format!("{missing} things are missing"))),
    }
}
