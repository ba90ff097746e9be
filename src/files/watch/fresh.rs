//! The entries that were reported because a look into a new directory has found them.
//!
//! The directory is watched before it is read, so the kernel reports an entry that is made meanwhile, too. That event
//! is already in the kernel's queue when the look ends: up to there, the event of such an entry is left out.

use std::collections::HashSet;

/// Maximum number of entries. Beyond it, an entry may be reported twice.
const MAX_ENTRIES: usize = 16_384;

/// Maximum length of all names, in bytes.
const MAX_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Fresh {
    entries: HashSet<(i32, Box<[u8]>)>,
    bytes: usize,
    /// The end of the last event that can be about one of the entries.
    until: u64,
}

impl Fresh {
    /// Notes that an entry of the directory was reported.
    pub(super) fn add(&mut self, wd: i32, name: &[u8]) {
        if self.entries.len() < MAX_ENTRIES && self.bytes + name.len() <= MAX_BYTES {
            self.bytes += name.len();
            self.entries.insert((wd, name.into()));
        }
    }

    /// Ends a look. The events in the queue end at `until`.
    pub(super) fn seal(&mut self, until: u64) {
        self.until = until;
    }

    /// Whether the entry was reported, and the event that ends at `end` may be the one of its creation. Only the first
    /// event of an entry is.
    pub(super) fn take(&mut self, wd: i32, name: &[u8], end: u64) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        if end > self.until {
            self.clear();
            return false;
        }
        self.entries.remove(&(wd, name.into()))
    }

    /// Forgets all entries.
    pub(super) fn clear(&mut self) {
        *self = Fresh::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_of_an_entry_is_left_out_up_to_the_end_of_the_look() {
        let mut fresh = Fresh::default();
        assert!(!fresh.take(1, b"a", 0));
        for name in [&b"a"[..], b"b", b"c"] {
            fresh.add(1, name);
        }
        fresh.seal(100);
        assert!(!fresh.take(2, b"a", 10), "another directory");
        assert!(fresh.take(1, b"a", 10) && !fresh.take(1, b"a", 20));
        assert!(fresh.take(1, b"b", 100));
        assert!(!fresh.take(1, b"c", 101), "it came later");
        assert!(!fresh.take(1, b"c", 50), "they are forgotten by now");
    }

    #[test]
    fn memory_is_bounded() {
        let mut fresh = Fresh::default();
        (0..2 * MAX_ENTRIES).for_each(|n| fresh.add(1, n.to_string().as_bytes()));
        assert_eq!(fresh.entries.len(), MAX_ENTRIES);
        fresh.clear();
        (0..MAX_ENTRIES as i32).for_each(|n| fresh.add(n, &[b'x'; 255]));
        assert_eq!(fresh.entries.len(), MAX_BYTES / 255);
        fresh.seal(1);
        assert!(fresh.take(0, &[b'x'; 255], 1));
    }
}
