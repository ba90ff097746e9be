//! Finds the runs without a cgroup to which processes belong.

use super::Actor;
use super::job::Attribution;
use crate::events::EventSubject;
use crate::model::RunKey;
use tl_os::process_tree::Marks;
use tl_os::procfs::{Process, pipes_of};

impl Actor {
    pub(super) fn attribute(&mut self, mut attribution: Attribution) {
        for (at, ancestry) in &attribution.processes {
            let subject = self.run_of(ancestry, &attribution.runs);
            if let Some(place) = attribution.found.get_mut(*at) {
                *place = subject;
            }
        }
        attribution.reply.send(Ok(attribution.found));
    }

    fn run_of(&mut self, ancestry: &[Process], runs: &[(RunKey, Marks, EventSubject)]) -> Option<EventSubject> {
        let is_known = |key: &RunKey, process: &Process| {
            self.known.get(key).is_some_and(|known| known.contains(&process.identity()))
        };
        let by_leader = ancestry
            .iter()
            .find_map(|process| runs.iter().find(|(key, marks, _)| marks.is_leader(process) || is_known(key, process)));
        if let Some((.., subject)) = by_leader {
            return Some(subject.clone());
        }
        // It descends from an orphan, which its session, its output or its environment may betray.
        let orphan = ancestry.last()?;
        let (pipes, invocation) = (pipes_of(orphan), self.environ.invocation_of(orphan));
        let run = runs.iter().find(|(_, marks, _)| marks.fits(orphan, &pipes, invocation.as_deref()));
        run.map(|(.., subject)| subject.clone())
    }
}
