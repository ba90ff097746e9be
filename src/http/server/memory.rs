//! Bounds on what all connections together hold of one kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Bytes that may be held at once.
#[derive(Clone, Debug)]
pub(in crate::http) struct Pool(Arc<AtomicUsize>);

/// Bytes that are held. Dropping it gives them back.
#[derive(Debug)]
pub(in crate::http) struct Grant {
    pool: Pool,
    bytes: usize,
}

impl Pool {
    pub(in crate::http) fn new(bytes: usize) -> Pool {
        Pool(Arc::new(AtomicUsize::new(bytes)))
    }

    /// A grant of nothing yet.
    pub(in crate::http) fn grant(&self) -> Grant {
        Grant { pool: self.clone(), bytes: 0 }
    }
}

impl Grant {
    /// Grows to so many bytes; false, and nothing has changed, where the pool has not as many.
    pub(in crate::http) fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let granted = self.pool.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(more)).is_ok();
        if granted {
            self.bytes += more;
        }
        granted
    }

    /// Gives all of it back.
    pub(in crate::http) fn release(&mut self) {
        self.pool.0.fetch_add(std::mem::take(&mut self.bytes), SeqCst);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_comes_back() {
        let pool = Pool::new(10);
        let (mut one, mut other) = (pool.grant(), pool.grant());
        assert!(one.grow_to(6) && one.grow_to(4) && !other.grow_to(5) && other.grow_to(4));
        drop(one);
        assert!(other.grow_to(10) && !other.grow_to(11));
        other.release();
        assert!(pool.grant().grow_to(10));
    }
}
