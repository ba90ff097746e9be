//! Events as inotify(7) writes them.

use std::collections::VecDeque;

/// The content of a file has changed.
pub(super) const MODIFY: u32 = 0x2;
/// The mode, the owner, the times or the number of links have changed.
pub(super) const ATTRIB: u32 = 0x4;
/// An entry was moved away from the directory.
pub(super) const MOVED_FROM: u32 = 0x40;
/// An entry was moved into the directory.
pub(super) const MOVED_TO: u32 = 0x80;
/// An entry was created.
pub(super) const CREATE: u32 = 0x100;
/// An entry was removed.
pub(super) const DELETE: u32 = 0x200;
/// What is watched was removed.
pub(super) const DELETE_SELF: u32 = 0x400;
/// What is watched was moved.
pub(super) const MOVE_SELF: u32 = 0x800;
/// The file system of what is watched was unmounted.
pub(super) const UNMOUNT: u32 = 0x2000;
/// The kernel's queue was full: events are missing here.
pub(super) const Q_OVERFLOW: u32 = 0x4000;
/// The watch no longer exists.
pub(super) const IGNORED: u32 = 0x8000;
/// When a watch is added: only if it is a directory.
pub(super) const ONLYDIR: u32 = 0x0100_0000;
/// When a watch is added: no events of entries after their removal.
pub(super) const EXCL_UNLINK: u32 = 0x0400_0000;
/// The event is about a directory.
pub(super) const ISDIR: u32 = 0x4000_0000;

/// Any change of the entries of a directory. The kernel reports these while it holds the lock of the directory.
pub(super) const ENTRIES: u32 = CREATE | DELETE | MOVED_FROM | MOVED_TO;

/// Length of an event without its name, in bytes.
const HEAD: usize = 16;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawEvent {
    /// The watch.
    pub(super) wd: i32,
    pub(super) mask: u32,
    /// The same number in both halves of a move.
    pub(super) cookie: u32,
    /// The entry of the directory; empty if the event is about what is watched itself.
    pub(super) name: Box<[u8]>,
    /// The number of bytes that the kernel has written up to the end of this event.
    pub(super) end: u64,
}

impl RawEvent {
    /// Whether the event is of one of these types.
    pub(super) fn is(&self, types: u32) -> bool {
        self.mask & types != 0
    }

    /// Whether the event is about a directory.
    pub(super) fn is_dir(&self) -> bool {
        self.is(ISDIR)
    }
}

/// Appends the events in `bytes`, of which `before` bytes precede. The kernel writes whole events only; anything else
/// at the end is skipped.
pub(super) fn parse(mut bytes: &[u8], before: u64, events: &mut VecDeque<RawEvent>) {
    let mut end = before;
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *head;
        let padded = u32::from_ne_bytes([m, n, o, p]);
        let Some((name, rest)) = usize::try_from(padded).ok().and_then(|length| rest.split_at_checked(length)) else {
            return;
        };
        end += (HEAD + name.len()) as u64;
        // The name is padded with NUL characters.
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        events.push_back(RawEvent {
            wd: i32::from_ne_bytes([a, b, c, d]),
            mask: u32::from_ne_bytes([e, f, g, h]),
            cookie: u32::from_ne_bytes([i, j, k, l]),
            name: name.into(),
            end,
        });
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(wd: i32, mask: u32, cookie: u32, name: &[u8], padded: u32) -> Vec<u8> {
        let mut bytes = [wd.to_ne_bytes(), mask.to_ne_bytes(), cookie.to_ne_bytes(), padded.to_ne_bytes()].concat();
        bytes.extend_from_slice(name);
        bytes.resize(HEAD + padded as usize % 4096, 0);
        bytes
    }

    #[test]
    fn events_are_parsed_with_their_names_and_ends() {
        let input = [
            bytes(1, CREATE | ISDIR, 0, b"a\xff", 16),
            bytes(-1, Q_OVERFLOW, 0, b"", 0),
            bytes(2, MOVED_TO, 77, &[b'n'; 255], 256),
        ]
        .concat();
        let mut events = VecDeque::new();
        parse(&input, 100, &mut events);
        let event = |wd, mask, cookie, name: &[u8], end| RawEvent { wd, mask, cookie, name: name.into(), end };
        let right = [
            event(1, CREATE | ISDIR, 0, b"a\xff", 132),
            event(-1, Q_OVERFLOW, 0, b"", 148),
            event(2, MOVED_TO, 77, &[b'n'; 255], 420),
        ];
        assert_eq!(Vec::from(events.clone()), right);
        assert!(events[0].is_dir() && events[0].is(ENTRIES) && !events[1].is(ENTRIES) && !events[2].is_dir());
    }

    #[test]
    fn an_incomplete_event_is_skipped() {
        let input = bytes(1, CREATE, 0, b"a", 16);
        for end in 0..input.len() {
            let mut events = VecDeque::new();
            parse(&input[..end], 0, &mut events);
            assert!(events.is_empty(), "{end}");
        }
        let mut events = VecDeque::new();
        parse(&bytes(1, CREATE, 0, b"", u32::MAX - 3)[..HEAD], 0, &mut events);
        assert!(events.is_empty());
    }
}
