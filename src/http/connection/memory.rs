//! Memory pools: limits on what all connections together hold for one purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A number of bytes that connections share.
#[derive(Clone, Debug)]
pub(crate) struct MemoryPool(Arc<AtomicUsize>);

/// Bytes taken from a [`MemoryPool`]. Dropping the grant returns them.
#[derive(Debug)]
pub(crate) struct MemoryGrant {
    pool: MemoryPool,
    bytes: usize,
}

impl MemoryPool {
    /// A pool of this many bytes.
    pub(crate) fn new(bytes: usize) -> MemoryPool {
        MemoryPool(Arc::new(AtomicUsize::new(bytes)))
    }

    /// A grant of 0 bytes, which can grow.
    pub(crate) fn grant(&self) -> MemoryGrant {
        MemoryGrant { pool: self.clone(), bytes: 0 }
    }
}

impl MemoryGrant {
    /// Grows the grant to `bytes` in all. Returns false, and changes nothing, if the pool has too few left.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let granted = self.pool.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(more)).is_ok();
        if granted {
            self.bytes += more;
        }
        granted
    }

    /// Returns all bytes to the pool.
    pub(crate) fn release(&mut self) {
        self.pool.0.fetch_add(std::mem::take(&mut self.bytes), SeqCst);
    }
}

impl Drop for MemoryGrant {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_or_released_grant_returns_its_bytes() {
        let pool = MemoryPool::new(10);
        let (mut one, mut other) = (pool.grant(), pool.grant());
        assert!(one.grow_to(6) && one.grow_to(4) && !other.grow_to(5) && other.grow_to(4));
        drop(one);
        assert!(other.grow_to(10) && !other.grow_to(11));
        other.release();
        assert!(pool.grant().grow_to(10));
    }
}
