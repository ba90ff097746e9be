//! What the proxy counts, for `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The counters, which all connections share.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    requests: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    upgraded: AtomicU64,
    upgraded_ended: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// The counters at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProxyNumbers {
    /// Requests so far.
    pub(crate) requests: u64,
    /// Requests that are being served, upgraded connections included.
    pub(crate) open: u64,
    /// Upgraded connections (WebSockets) that are open.
    pub(crate) open_upgraded: u64,
    /// Requests that the proxy answered itself, with an error.
    pub(crate) failed: u64,
    /// Bytes of request bodies, and of upgraded connections, that clients have sent.
    pub(crate) received_bytes: u64,
    /// Bytes of response bodies, and of upgraded connections, that were sent to clients.
    pub(crate) sent_bytes: u64,
}

impl Numbers {
    /// The counters now.
    pub(crate) fn read(&self) -> ProxyNumbers {
        // The ends first: a request that begins in between must not make the difference negative.
        let (ended, upgraded_ended) = (self.ended.load(Relaxed), self.upgraded_ended.load(Relaxed));
        let (requests, upgraded) = (self.requests.load(Relaxed), self.upgraded.load(Relaxed));
        ProxyNumbers {
            requests,
            open: requests.saturating_sub(ended),
            open_upgraded: upgraded.saturating_sub(upgraded_ended),
            failed: self.failed.load(Relaxed),
            received_bytes: self.received.load(Relaxed),
            sent_bytes: self.sent.load(Relaxed),
        }
    }

    /// Counts a request that the proxy answered itself, with an error.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }
}

/// A request that is being served. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    numbers: Arc<Numbers>,
    is_upgraded: bool,
}

impl OpenRequest {
    pub(crate) fn begin(numbers: &Arc<Numbers>) -> OpenRequest {
        numbers.requests.fetch_add(1, Relaxed);
        OpenRequest { numbers: Arc::clone(numbers), is_upgraded: false }
    }

    /// The request has become a connection of another protocol.
    pub(crate) fn upgrade(&mut self) {
        self.is_upgraded = true;
        self.numbers.upgraded.fetch_add(1, Relaxed);
    }

    /// Counts bytes that the client has sent.
    pub(crate) fn received(&self, bytes: usize) {
        self.numbers.received.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts bytes that were sent to the client.
    pub(crate) fn sent(&self, bytes: usize) {
        self.numbers.sent.fetch_add(bytes as u64, Relaxed);
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if self.is_upgraded {
            self.numbers.upgraded_ended.fetch_add(1, Relaxed);
        }
        self.numbers.ended.fetch_add(1, Relaxed);
    }
}
