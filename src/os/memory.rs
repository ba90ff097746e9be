//! Memory that nobody uses any more.

/// Gives it back to the kernel. The allocator keeps what was freed, in case it is wanted again: what lies between
/// pieces that are in use it would keep for ever.
pub fn give_back() {
    // SAFETY: the allocator has locks of its own, and no memory that is in use is touched.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
