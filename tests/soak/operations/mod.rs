//! What a client does: a table of operations, one file for each subject.

pub mod control;
pub mod files;
pub mod output;
pub mod processes;
pub mod rough;
pub mod runs;
pub mod stdin;
pub mod terminals;
pub mod tunnels;

use crate::checker::Running;
use crate::client::Client;
use crate::harness::Random;
use crate::lines::generator;

/// An operation: how often it is chosen, its name, and what it does. It gets a generator of its own, so that its choices
/// do not depend on how much the operations before it have chosen.
type Operation = (u64, &'static str, fn(&mut Client, &mut Random));

const OPERATIONS: [Operation; 24] = [
    (10, "start", processes::start_any),
    (6, "inspect", processes::inspect),
    (4, "list", processes::list),
    (3, "wait", processes::wait),
    (8, "finish", processes::finish_any),
    (8, "run", runs::run),
    (2, "run with a timeout", runs::run_out_of_time),
    (3, "run, cut", runs::cut_run),
    (6, "output", output::listing),
    (7, "follow", output::follow),
    (3, "follow later", output::leave_follower),
    (6, "stdin", stdin::write),
    (1, "stdin, cut", stdin::cut_write),
    (5, "signal", control::signal),
    (2, "stop and continue", control::stop_and_continue),
    (3, "kill from outside", control::kill_from_outside),
    (4, "restart", control::restart),
    (6, "upload", files::upload),
    (5, "download", files::download),
    (3, "delete or list files", files::remove_or_list),
    (2, "upload, cut", files::cut_upload),
    (6, "terminal", terminals::use_terminal),
    (4, "tunnel", tunnels::tunnel),
    (4, "rough client", rough::misbehave),
];

impl Client<'_> {
    /// Performs operation `number` of this round.
    pub fn operate(&mut self, number: u64) {
        self.operation = number;
        self.current = None;
        let mut random = generator(&[self.shared.seed, self.round, self.number, number]);
        let all: u64 = OPERATIONS.iter().map(|(weight, ..)| weight).sum();
        let mut at = random.below(all);
        let chosen = OPERATIONS.iter().find(|(weight, ..)| {
            let is_chosen = at < *weight;
            at = at.saturating_sub(*weight);
            is_chosen
        });
        let Some((_, name, perform)) = chosen else { return };
        self.note(format_args!("-- {name}"));
        self.shared.tally.operation(name);
        perform(self, &mut random);
    }

    /// Checks the processes that end, or have ended, by themselves. All others run on.
    pub fn finish_what_ends(&mut self) {
        self.operation += 1;
        let mut random = generator(&[self.shared.seed, self.round, self.number, u64::MAX - 1]);
        while let Some(at) = self.processes.iter().position(|process| !process.is_held()) {
            processes::finish(self, at, &mut random);
        }
        for at in 0..self.processes.len() {
            if !self.processes[at].is_stopped {
                self.wait_until_ready(at);
            }
        }
    }

    /// What this client has running.
    pub fn running(&self) -> Vec<Running> {
        let processes = self.processes.iter();
        let processes = processes.map(|one| Running { pid: one.pid, handle: Some(one.handle), tag: one.tag.clone() });
        let consoles = self.consoles.iter();
        processes.chain(consoles.map(|one| Running { pid: one.pid, handle: None, tag: one.tag.clone() })).collect()
    }

    /// Ends and checks everything that this client has, and closes its connections.
    pub fn finish_all(&mut self) {
        self.operation += 1;
        self.note("-- the end of the round");
        let mut random = generator(&[self.shared.seed, self.round, self.number, u64::MAX]);
        while !self.processes.is_empty() {
            processes::finish(self, 0, &mut random);
        }
        while !self.consoles.is_empty() {
            terminals::finish(self, 0, &mut random);
        }
        files::finish(self);
        self.disconnect();
    }
}
