//! When to return the memory of released units to the kernel: after many have been released, and none for a while. Plain
//! data.

use std::time::Duration;

/// Number of released units from which returning their memory is worth the time. A unit takes some 2 KiB.
const MANY: u32 = 256;
/// Time after the last release. While units still end, new ones are often started, which use the memory again.
const QUIET: Duration = Duration::from_secs(2);

/// Counts released units, and knows when their memory is to be returned.
#[derive(Debug, Default)]
pub(super) struct MemoryReturn {
    /// Number of units released since memory was last returned.
    released: u32,
    due: Option<Duration>,
}

impl MemoryReturn {
    /// Records that a unit was released.
    pub(super) fn note_release(&mut self, now: Duration) {
        self.released = self.released.saturating_add(1);
        self.due = (self.released >= MANY).then(|| now + QUIET);
    }

    /// When memory must be returned next.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Whether memory must be returned now. If so, the caller does it, and the count starts again.
    pub(super) fn take_due(&mut self, now: Duration) -> bool {
        let due = self.due.is_some_and(|at| at <= now);
        if due {
            *self = MemoryReturn::default();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn memory_is_returned_once_after_many_releases_and_a_pause() {
        let mut memory = MemoryReturn::default();
        for _ in 1..MANY {
            memory.note_release(SECOND);
            assert_eq!(memory.due(), None);
        }
        memory.note_release(2 * SECOND);
        memory.note_release(3 * SECOND);
        assert_eq!(memory.due(), Some(3 * SECOND + QUIET));
        assert!(!memory.take_due(4 * SECOND));
        assert!(memory.take_due(3 * SECOND + QUIET) && memory.due().is_none());
        memory.note_release(60 * SECOND);
        assert_eq!(memory.due(), None, "it was the first after the return");
    }
}
