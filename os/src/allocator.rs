//! The global allocator: keeps a reserve for small allocations, and returns unused memory to the kernel.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};

#[cfg(target_env = "gnu")]
use nix::sys::resource::{Resource, getrlimit};

/// Size of the reserve of address space in bytes: twice what the C library takes from the kernel at once.
const RESERVE: usize = 2 << 20;

/// Address space that must be free beside the reserve, in bytes: for a thread's stack, and for what several threads may
/// allocate at the same time.
const MARGIN: usize = 4 << 20;

/// Largest allocation in bytes that may use the reserve. The program must handle the failure of larger ones.
const SMALL: usize = 256 << 10;

/// The reserve; null while it is not held.
static HELD: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());

/// Number of threads that are returning the reserve to the kernel.
static RETURNING: AtomicUsize = AtomicUsize::new(0);

/// Whether [`hold_reserve`] was called.
static WANTED: AtomicBool = AtomicBool::new(false);

/// The system's allocator with a reserve. Where memory is limited (RLIMIT_AS, strict overcommit), the failure of a
/// small allocation would end the process. So a small allocation that fails is tried again after the reserve was
/// returned to the kernel.
#[derive(Debug)]
pub struct Allocator;

/// Holds the reserve from now on. It has an effect only in a program whose global allocator is [`Allocator`].
pub fn hold_reserve() {
    WANTED.store(true, SeqCst);
    replenish();
}

/// Holds the reserve again if it was used. Returns false while there is no memory for it; then the program should begin
/// nothing new. Returns true if [`hold_reserve`] was never called.
pub fn replenish() -> bool {
    if !WANTED.load(SeqCst) || !HELD.load(SeqCst).is_null() {
        return true;
    }
    let Some(mapped) = map(RESERVE) else { return false };
    if HELD.compare_exchange(ptr::null_mut(), mapped, SeqCst, SeqCst).is_err() {
        // SAFETY: the exchange failed, so this thread alone knows the mapping that was just made.
        unsafe { unmap(mapped, RESERVE) };
    }
    true
}

/// Whether there is memory for a few small allocations besides the reserve.
pub fn has_some() -> bool {
    Vec::<u8>::new().try_reserve_exact(SMALL).is_ok()
}

/// Whether 4 MiB are free beside the reserve. The C library needs them for its own allocations, at the start of a
/// thread for example: these never use the reserve, and one that fails ends the process. Check this before starting a
/// thread for a client and before growing a buffer as a client demands. Returns true if [`hold_reserve`] was never
/// called.
pub fn has_margin() -> bool {
    if !WANTED.load(SeqCst) {
        return true;
    }
    let Some(mapped) = map(MARGIN) else { return false };
    // SAFETY: the mapping was just made, and this thread alone knows it.
    unsafe { unmap(mapped, MARGIN) };
    true
}

/// Whether a failed allocation of this size should be tried again. If so, the reserve was returned to the kernel, by
/// this thread or by another one whose allocation failed at the same time.
fn may_try_again(size: usize) -> bool {
    if size > SMALL {
        return false;
    }
    RETURNING.fetch_add(1, SeqCst);
    let held = HELD.swap(ptr::null_mut(), SeqCst);
    if !held.is_null() {
        // SAFETY: what `HELD` has comes from `map(RESERVE)`, and the swap has given it to this thread alone.
        unsafe { unmap(held, RESERVE) };
    }
    RETURNING.fetch_sub(1, SeqCst);
    // Another thread may have taken the reserve and not unmapped it yet: one system call that does not block.
    while RETURNING.load(SeqCst) > 0 {
        std::thread::yield_now();
    }
    true
}

/// Maps new memory of this many bytes; `None` if there is not so much.
fn map(bytes: usize) -> Option<*mut libc::c_void> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: it makes a new mapping at an address that the kernel chooses, and changes no existing one.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
    (mapped != libc::MAP_FAILED).then_some(mapped)
}

/// Unmaps what [`map`] has returned.
///
/// # Safety
/// `mapped` is a mapping of this length that [`map`] has made. It is not used again, by any thread.
unsafe fn unmap(mapped: *mut libc::c_void, bytes: usize) {
    // SAFETY: by this function's contract the mapping is the caller's alone.
    unsafe { libc::munmap(mapped, bytes) };
}

// SAFETY: each method passes its arguments to the system allocator and returns what that does. A request that failed is
// repeated with the same arguments. Nothing here allocates or panics.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this method, which is that of `System.alloc`.
        let memory = unsafe { System.alloc(layout) };
        if !memory.is_null() || !may_try_again(layout.size()) {
            return memory;
        }
        // SAFETY: the caller keeps the contract of this method, which is that of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this method, which is that of `System.alloc_zeroed`.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() || !may_try_again(layout.size()) {
            return memory;
        }
        // SAFETY: the caller keeps the contract of this method, which is that of `System.alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this method, which is that of `System.realloc`.
        let memory = unsafe { System.realloc(old, layout, size) };
        if !memory.is_null() || !may_try_again(size) {
            return memory;
        }
        // SAFETY: the caller keeps the contract of this method. The attempt that failed has left `old` as it was.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of this method, which is that of `System.dealloc`.
        unsafe { System.dealloc(memory, layout) };
    }
}

/// Makes all threads share two of glibc's arenas. By default each thread that runs has its own: memory that many
/// threads have used once is then spread over all arenas, and each takes 64 MiB of addresses.
///
/// Under a limit on the address space (RLIMIT_AS) all threads share a single arena: the second one can take so much of
/// the room that no thread can start any more.
///
/// Also fixes the size from which an allocation has a mapping of its own, and how much unused memory an arena keeps at
/// its end. By default glibc raises both when a large allocation is freed, up to 32 and 64 MiB.
///
/// # Safety
/// No other thread exists: glibc does not synchronise `mallopt(3)` with allocations.
pub unsafe fn share_arenas() {
    /// The default of glibc for both limits, in bytes.
    #[cfg(target_env = "gnu")]
    const LIMIT: libc::c_int = 128 << 10;
    #[cfg(target_env = "gnu")]
    let is_unlimited = getrlimit(Resource::RLIMIT_AS).is_ok_and(|(soft, _)| soft == libc::RLIM_INFINITY);
    // SAFETY: by this function's contract no other thread reads the setting meanwhile.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, if is_unlimited { 2 } else { 1 })
    };
    // SAFETY: as above.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LIMIT)
    };
    // SAFETY: as above.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, LIMIT)
    };
}

/// Returns freed memory to the kernel (malloc_trim(3)). Without this call the C library keeps freed memory for later
/// allocations, and never returns memory that lies between allocations in use.
pub fn trim() {
    // SAFETY: `malloc_trim(3)` takes the locks of the arenas, and does not touch memory in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Empties this thread's cache of freed memory, so that [`trim`] can return the pages of that memory too.
///
/// glibc keeps up to seven freed blocks of each size up to 1,032 bytes for each thread (`tcache` in its malloc.c), and
/// empties this cache only when the thread ends. After many allocations, each of these blocks can be the last one on its
/// page. This takes them out by allocating seven blocks of each size, and fills the cache with seven others, for which
/// glibc prefers gaps on pages that are in use.
pub fn empty_thread_cache() {
    #[cfg(target_env = "gnu")]
    const KEPT: usize = 7;
    // A block has 8 bytes more than were asked for, and its size is a multiple of 16.
    #[cfg(target_env = "gnu")]
    for size in (24..=1032).step_by(16) {
        // SAFETY: `malloc(3)` may be called with any size, and may fail.
        let allocate = || std::hint::black_box(unsafe { libc::malloc(size) });
        let cached: [_; KEPT] = std::array::from_fn(|_| allocate());
        let others: [_; KEPT] = std::array::from_fn(|_| allocate());
        for block in others.into_iter().chain(cached) {
            // SAFETY: `malloc` has returned it, nothing else has it, and it is freed only here.
            unsafe { libc::free(block) };
        }
    }
}

/// Returns the whole pages of a buffer to the kernel. The content of the buffer is unspecified afterwards. A page uses
/// memory again once it is written.
pub fn release_pages(buffer: &mut [u8]) {
    // SAFETY: it reads a constant of the system.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return };
    let before = buffer.as_ptr().align_offset(page);
    let Some(pages) = buffer.get_mut(before..) else { return };
    let len = pages.len() / page * page;
    // SAFETY: the pages lie in the buffer, which is borrowed for this function alone, and any byte is valid in it afterwards.
    unsafe { libc::madvise(pages.as_mut_ptr().cast(), len, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_env = "gnu")]
    #[test]
    fn blocks_in_the_cache_of_a_thread_are_freed() {
        let seven = || -> [Vec<u8>; 7] { std::array::from_fn(|_| Vec::with_capacity(200)) };
        // Each thread has a cache of its own, and no other test runs in this one.
        let run = move || {
            let cached = seven().map(|block| block.as_ptr().addr());
            let is_cached = |block: &Vec<u8>| cached.contains(&block.as_ptr().addr());
            assert!(seven().iter().all(is_cached), "the allocator has no such cache");
            empty_thread_cache();
            assert!(!seven().iter().any(is_cached));
        };
        std::thread::spawn(run).join().unwrap();
    }

    #[test]
    fn the_reserve_is_used_by_small_allocations_and_held_again() {
        assert!(replenish() && HELD.load(SeqCst).is_null(), "a reserve was not asked for yet");
        hold_reserve();
        assert!(!may_try_again(SMALL + 1) && !HELD.load(SeqCst).is_null(), "too large for the reserve");
        // The second of two allocations that fail at the same time finds the reserve returned already.
        for _ in 0..2 {
            assert!(may_try_again(SMALL) && HELD.load(SeqCst).is_null());
        }
        assert!(replenish() && !HELD.load(SeqCst).is_null());
    }
}
