//! Memory of the process: what to do when there is no more of it, and when there is more than is used.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::SeqCst};

/// Address space that is held back, in bytes: twice what the C library takes from the kernel at once.
const RESERVE: usize = 2 << 20;

/// A larger allocation never gets any of the reserve: who makes it can do without, or it is a mistake.
const SMALL: usize = 256 << 10;

/// The reserve, where it is held.
static HELD: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());

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
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping that the kernel places; nothing that is mapped already changes.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), RESERVE, access, kind, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    if HELD.compare_exchange(ptr::null_mut(), mapped, SeqCst, SeqCst).is_err() {
        unmap(mapped);
    }
    true
}

/// Whether there is memory for a few small allocations, asked where there is no reserve.
pub fn has_some() -> bool {
    Vec::<u8>::new().try_reserve_exact(SMALL).is_ok()
}

/// Gives the reserve back to the kernel, so that an allocation of this size can be tried again; false where there is none.
fn use_reserve(size: usize) -> bool {
    if size > SMALL {
        return false;
    }
    let held = HELD.swap(ptr::null_mut(), SeqCst);
    if !held.is_null() {
        unmap(held);
    }
    !held.is_null()
}

fn unmap(reserve: *mut libc::c_void) {
    // SAFETY: a mapping of this length that `replenish` has made, taken out of `HELD` by nobody else; nothing is in it.
    unsafe { libc::munmap(reserve, RESERVE) };
}

// SAFETY: every request is the system allocator's to fulfil; one that it cannot is repeated with the same arguments.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        let memory = unsafe { System.alloc(layout) };
        if !memory.is_null() || !use_reserve(layout.size()) {
            return memory;
        }
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() || !use_reserve(layout.size()) {
            return memory;
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        let memory = unsafe { System.realloc(old, layout, size) };
        if !memory.is_null() || !use_reserve(size) {
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
        assert!(!use_reserve(SMALL + 1), "that is too much");
        assert!(use_reserve(SMALL) && !use_reserve(1));
        assert!(replenish() && use_reserve(1));
    }
}
