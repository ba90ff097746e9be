//! A descriptor of a run, with its reservation.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::supervisor::fd_budget::Taken;

/// An end of a pipe, or the master of a terminal, with its reservation in the budget of descriptors.
#[derive(Debug)]
pub struct Descriptor {
    fd: OwnedFd,
    /// Released when the descriptor is closed.
    _taken: Taken,
}

impl Descriptor {
    /// Joins a descriptor and its reservation.
    pub fn new(fd: OwnedFd, taken: Taken) -> Arc<Descriptor> {
        Arc::new(Descriptor { fd, _taken: taken })
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
