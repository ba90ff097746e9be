//! Waits for the two connections between which bytes are passed, in both directions at once.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use tl_os::poll::{self, Events};

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Bytes from its source.
    Read,
    /// Room at its destination.
    Room,
    /// Another turn: it has passed much on, and the other direction comes first.
    Turn,
    /// Nothing: it has ended, or its destination takes no more.
    Nothing,
}

impl Want {
    /// The events to wait for at a connection that is the source of one direction and the destination of the other.
    pub(crate) fn events(as_source: Want, as_destination: Want) -> Events {
        let read = if as_source == Want::Read { Events::READ } else { Events::NONE };
        let write = if as_destination == Want::Room { Events::WRITE } else { Events::NONE };
        read.and(write)
    }
}

/// Which of the two connections is broken. `poll(2)` reports that even if it is not asked: without this, a connection of
/// which nothing is wanted any more would end each wait at once.
#[derive(Debug, Default)]
pub(crate) struct Pair {
    is_broken: [bool; 2],
}

impl Pair {
    /// Waits for events of the two connections and of `stop`, until `deadline`. Returns those of each connection. What
    /// `poll(2)` reports without being asked is returned once.
    ///
    /// # Errors
    /// If both connections are broken and nothing is wanted of either.
    pub(crate) fn wait(
        &mut self,
        connections: [(BorrowedFd<'_>, Events); 2],
        stop: Option<(BorrowedFd<'_>, Events)>,
        deadline: Option<Instant>,
    ) -> io::Result<[Events; 2]> {
        let [first, second] = connections;
        let [first_is_broken, second_is_broken] = self.is_broken;
        let skipped = [first_is_broken && first.1 == Events::NONE, second_is_broken && second.1 == Events::NONE];
        // The other one takes the place of the one that is skipped.
        let connections = match skipped {
            [true, true] => return Err(io::ErrorKind::ConnectionReset.into()),
            [true, false] => [(second.0, Events::NONE), second],
            [false, true] => [first, (first.0, Events::NONE)],
            [false, false] => connections,
        };
        let [first, second] = match stop {
            None => poll::wait(connections, deadline)?,
            Some(stop) => {
                let [first, second] = connections;
                let [first, second, _] = poll::wait([first, second, stop], deadline)?;
                [first, second]
            }
        };
        let ready = match skipped {
            [true, _] => [Events::NONE, second],
            [_, true] => [first, Events::NONE],
            _ => [first, second],
        };
        let [first, second] = ready.map(|events| events.any(Events::BROKEN));
        self.is_broken = [first_is_broken || first, second_is_broken || second];
        Ok(ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn a_broken_connection_is_reported_once_unless_something_is_wanted_of_it() {
        let (first, first_peer) = UnixStream::pair().unwrap();
        let (second, second_peer) = UnixStream::pair().unwrap();
        let mut pair = Pair::default();
        let mut wait = |of_first, of_second| {
            let soon = Some(Instant::now() + Duration::from_millis(1));
            pair.wait([(first.as_fd(), of_first), (second.as_fd(), of_second)], None, soon)
        };
        assert_eq!(wait(Events::READ, Events::NONE).unwrap(), [Events::NONE; 2]);
        drop(second_peer);
        assert!(wait(Events::READ, Events::NONE).unwrap()[1].any(Events::BROKEN));
        assert_eq!(wait(Events::READ, Events::NONE).unwrap(), [Events::NONE; 2]);
        assert!(wait(Events::READ, Events::READ).unwrap()[1].any(Events::READ));
        drop(first_peer);
        assert!(wait(Events::NONE, Events::NONE).unwrap()[0].any(Events::BROKEN));
        assert!(wait(Events::NONE, Events::NONE).is_err());
    }
}
