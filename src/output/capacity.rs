//! Enlarges the pipes of processes that write much.
//!
//! A pipe holds 64 KiB by default. A process that writes faster than that is read then waits for the output thread
//! every 64 KiB, and the output thread for the process; each turn costs a wake-up, and while both sides wait, the
//! processors sleep. Four times the capacity needs a quarter of the turns. Still larger pipes are not faster: their bytes
//! no longer fit into the cache of a processor. The batches would also need more memory.

use std::os::fd::AsFd;
use std::sync::Arc;

use tl_os::pipe::enlarge;

/// The capacity of a pipe after it was enlarged, in bytes.
const LARGE: usize = 256 << 10;
/// A read of at least this many bytes has found a full pipe: the default capacity.
const FULL: usize = 64 << 10;
/// Number of reads of a full pipe after which it is enlarged.
const FULL_READS: u32 = 4;
/// Maximum number of enlarged pipes. The kernel gives pipes of only 8 KiB to a user without CAP_SYS_RESOURCE whose
/// pipes together hold 64 MiB (pipe(7), `pipe-user-pages-soft`); these take 3 MiB of that.
const MAX_LARGE: usize = 16;

/// Counts the enlarged pipes that are open.
#[derive(Default)]
pub(super) struct LargePipes(Arc<()>);

/// What is known about the capacity of one pipe.
#[derive(Default)]
pub(super) struct Capacity {
    /// Number of reads that have found the pipe full since it was last tried to enlarge it.
    full_reads: u32,
    /// Counts this pipe among the enlarged ones until it is closed.
    large: Option<Arc<()>>,
}

impl LargePipes {
    fn is_full(&self) -> bool {
        Arc::strong_count(&self.0) > MAX_LARGE
    }
}

impl Capacity {
    /// Records that a read of `pipe` has returned `count` bytes, and enlarges the pipe if it is often full.
    pub(super) fn note_read(&mut self, pipe: &impl AsFd, count: usize, pipes: &LargePipes) {
        if count < FULL || self.large.is_some() {
            return;
        }
        self.full_reads += 1;
        if self.full_reads < FULL_READS {
            return;
        }
        self.full_reads = 0;
        if !pipes.is_full() && enlarge(pipe, LARGE) {
            self.large = Some(Arc::clone(&pipes.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::unistd::pipe;

    use super::*;

    fn size(pipe: &impl AsFd) -> usize {
        fcntl(pipe, FcntlArg::F_GETPIPE_SZ).unwrap() as usize
    }

    fn fill(capacity: &mut Capacity, pipe: &impl AsFd, pipes: &LargePipes) {
        (0..FULL_READS).for_each(|_| capacity.note_read(pipe, FULL, pipes));
    }

    #[test]
    fn a_pipe_that_is_often_full_is_enlarged() {
        let pipes = LargePipes::default();
        let (ours, _theirs) = pipe().unwrap();
        let (mut capacity, before) = (Capacity::default(), size(&ours));
        (0..100).for_each(|_| capacity.note_read(&ours, FULL - 1, &pipes));
        (1..FULL_READS).for_each(|_| capacity.note_read(&ours, FULL, &pipes));
        assert_eq!(size(&ours), before);
        capacity.note_read(&ours, FULL, &pipes);
        assert_eq!(size(&ours), LARGE);
    }

    #[test]
    fn a_pipe_that_its_process_has_enlarged_further_stays_as_large() {
        let (ours, _theirs) = pipe().unwrap();
        fcntl(&ours, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        fill(&mut Capacity::default(), &ours, &LargePipes::default());
        assert_eq!(size(&ours), 1 << 20);
    }

    #[test]
    fn the_number_of_enlarged_pipes_is_limited() {
        let pipes = LargePipes::default();
        let mut all: Vec<_> = (0..=MAX_LARGE).map(|_| (pipe().unwrap(), Capacity::default())).collect();
        for ((ours, _), capacity) in &mut all {
            fill(capacity, ours, &pipes);
        }
        let ((last, _theirs), mut its) = all.pop().unwrap();
        assert!(size(&last) < LARGE);
        // Once one of the others is closed, the next full pipe is enlarged.
        drop(all.pop());
        fill(&mut its, &last, &pipes);
        assert_eq!(size(&last), LARGE);
    }
}
