//! Memory of the process: what to do when there is no more of it, and when there is more than is used.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};

/// Address space that is held back, in bytes: twice what the C library takes from the kernel at once.
const RESERVE: usize = 2 << 20;

/// What is left for the C library, in bytes: a thread's stack, and what several threads may allocate at the same time.
const MARGIN: usize = 4 << 20;

/// A larger allocation never gets any of the reserve: who makes it can do without, or it is a mistake.
const SMALL: usize = 256 << 10;

/// The reserve, where it is held.
static HELD: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());

/// Threads that are giving the reserve back.
static GIVING_BACK: AtomicUsize = AtomicUsize::new(0);

/// Whether a reserve is wanted.
static WANTED: AtomicBool = AtomicBool::new(false);

/// The system's allocator, with a reserve: where memory has an end (RLIMIT_AS, strict overcommit), what fails first must
/// not be the allocation of a few bytes that nobody can do without, because that ends the process.
#[derive(Debug)]
pub struct Allocator;

/// Holds the reserve from now on. For a program whose global allocator is [`Allocator`].
pub fn hold_reserve() {
    WANTED.store(true, SeqCst);
    replenish();
}

/// Holds the reserve again where it was used; false while that is not possible: then nothing new should be begun.
pub fn replenish() -> bool {
    if !WANTED.load(SeqCst) || !HELD.load(SeqCst).is_null() {
        return true;
    }
    let Some(mapped) = map(RESERVE) else { return false };
    if HELD.compare_exchange(ptr::null_mut(), mapped, SeqCst, SeqCst).is_err() {
        unmap(mapped, RESERVE);
    }
    true
}

/// Whether there is memory for a few small allocations, asked where there is no reserve.
pub fn has_some() -> bool {
    Vec::<u8>::new().try_reserve_exact(SMALL).is_ok()
}

/// Whether there is memory beside the reserve for what the C library allocates by itself, which never gets any of that
/// and where a failure ends the process: at the start of each thread, for example. To be asked before a thread is started
/// for a stranger, and before a buffer grows as a stranger likes.
pub fn has_margin() -> bool {
    if !WANTED.load(SeqCst) {
        return true;
    }
    let mapped = map(MARGIN);
    mapped.is_some_and(|mapped| {
        unmap(mapped, MARGIN);
        true
    })
}

/// Whether an allocation of this size, which has failed, is tried again: with the reserve given back to the kernel, by this
/// thread or by another one that has failed at the same time.
fn may_try_again(size: usize) -> bool {
    if size > SMALL {
        return false;
    }
    GIVING_BACK.fetch_add(1, SeqCst);
    let held = HELD.swap(ptr::null_mut(), SeqCst);
    if !held.is_null() {
        unmap(held, RESERVE);
    }
    GIVING_BACK.fetch_sub(1, SeqCst);
    // Whoever has taken the reserve may be about to unmap it: a system call that waits for nobody.
    while GIVING_BACK.load(SeqCst) > 0 {
        std::thread::yield_now();
    }
    true
}

/// New memory that nothing is in yet.
fn map(bytes: usize) -> Option<*mut libc::c_void> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping that the kernel places; nothing that is mapped already changes.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
    (mapped != libc::MAP_FAILED).then_some(mapped)
}

/// Gives back what [`map`] has given.
fn unmap(mapped: *mut libc::c_void, bytes: usize) {
    // SAFETY: a mapping of this length that `map` has made, and that nobody else has; nothing is in it.
    unsafe { libc::munmap(mapped, bytes) };
}

// SAFETY: every request is the system allocator's to fulfil; one that it cannot is repeated with the same arguments.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        let memory = unsafe { System.alloc(layout) };
        if !memory.is_null() || !may_try_again(layout.size()) {
            return memory;
        }
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() || !may_try_again(layout.size()) {
            return memory;
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        let memory = unsafe { System.realloc(old, layout, size) };
        if !memory.is_null() || !may_try_again(size) {
            return memory;
        }
        // SAFETY: as above; what failed has left the old memory as it was.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(memory, layout) };
    }
}

/// Has all threads share few arenas: with one for each that runs at the same time, what was used once by many threads is
/// spread over all of them, and each takes 64 MiB of addresses. To be called before there are other threads.
pub fn share_arenas() {
    // SAFETY: a setting of the allocator, which has locks of its own.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2)
    };
}

/// Gives memory that nobody uses any more to the kernel. The allocator keeps what was freed, in case it is wanted again:
/// what lies between pieces that are in use it would keep for ever.
pub fn give_back() {
    // SAFETY: the allocator has locks of its own, and no memory that is in use is touched.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_used_once_and_held_again() {
        assert!(replenish() && HELD.load(SeqCst).is_null(), "nobody wants it here yet");
        hold_reserve();
        assert!(!may_try_again(SMALL + 1) && !HELD.load(SeqCst).is_null(), "that is too much");
        // The second of two that fail at the same time finds it given back already.
        for _ in 0..2 {
            assert!(may_try_again(SMALL) && HELD.load(SeqCst).is_null());
        }
        assert!(replenish() && !HELD.load(SeqCst).is_null());
    }
}
