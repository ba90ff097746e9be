//! The memory that a request to the fork server is written to.

use std::ffi::c_char;
use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;

use super::outcome::Outcome;
use crate::spawn::child::Setup;
use crate::spawn::launch::{Launch, StringArray};
use crate::spawn::program::Program;

/// Length of a request in bytes. Longer ones, which are rare, are forked without the server. Only pages that were
/// written take memory.
const LENGTH: usize = 256 << 10;

/// The value of [`Request::errno`] if the server could not use the request.
pub(super) const UNUSABLE: i32 = -1;

/// What stands at the beginning of the region. The strings and arrays of the program follow.
#[repr(C)]
pub(super) struct Request {
    /// The PID of the child, written by the kernel before the child runs; 0 until then.
    pub(super) pid: AtomicI32,
    /// The errno of the fork, if it has failed, or [`UNUSABLE`]; 0 until then.
    pub(super) errno: AtomicI32,
    /// Number of bytes of the region that are in use.
    length: usize,
    /// Number of descriptors that are sent with the request.
    pub(super) descriptors: usize,
    /// The directory of the cgroup that the child is created in.
    pub(super) cgroup: Option<RawFd>,
    /// The program. Its pointers point into the private mapping.
    pub(super) program: Program,
    /// The descriptors have the numbers that they have in the server.
    pub(super) setup: Setup,
}

/// Two mappings of the same length, made before the server is forked, so that they have the same addresses in both
/// processes.
///
/// The daemon writes a request to the one that both share. The server copies it to the other, its own, before it forks:
/// a child still reads its request when the daemon already writes the next one.
#[derive(Debug)]
pub(super) struct Region(Mappings);

/// The mappings of a [`Region`], as the server refers to them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mappings {
    shared: NonNull<Request>,
    private: NonNull<Request>,
}

// SAFETY: the mappings belong to no thread, and in this process they are used only through the region. The copies of the
// pointers that `mappings` returns are used only in the server.
unsafe impl Send for Region {}

impl Region {
    /// Maps the memory.
    ///
    /// # Errors
    /// When no memory is left.
    pub(super) fn map() -> io::Result<Region> {
        let shared = map(libc::MAP_SHARED)?;
        let private = map(libc::MAP_PRIVATE).inspect_err(|_| {
            // SAFETY: the mapping was just made, and nothing else knows it.
            unsafe { unmap(shared) }
        })?;
        Ok(Region(Mappings { shared, private }))
    }

    /// The mappings, for the server. They are valid while the region lives, and in a process that was forked meanwhile.
    pub(super) fn mappings(&self) -> Mappings {
        self.0
    }

    /// Writes a request. Returns false if it is too long.
    pub(super) fn write(&mut self, launch: &Launch, setup: &Setup, cgroup: Option<RawFd>, descriptors: usize) -> bool {
        let Mappings { shared, private } = self.0;
        // SAFETY: the mapping has this length and lives as long as `self`. The server reads it only after it has got a
        // message, which is sent after this, and writes to it only before it answers.
        let bytes = unsafe { std::slice::from_raw_parts_mut(shared.as_ptr().cast::<u8>(), LENGTH) };
        let mut writer = Writer { bytes, base: private.as_ptr() as usize, length: size_of::<Request>() };
        let Some(program) = writer.program(launch) else { return false };
        let (pid, errno) = (AtomicI32::new(0), AtomicI32::new(0));
        let request = Request { pid, errno, length: writer.length, descriptors, cgroup, program, setup: *setup };
        // SAFETY: the mapping is valid for writing and aligned to a page; the writer has left room for the request.
        unsafe { shared.as_ptr().write(request) };
        true
    }

    /// What the server, or the kernel for it, has written as its answer.
    pub(super) fn outcome(&self) -> Outcome {
        // SAFETY: the mapping is aligned, and holds zeroes or what `write` has written; both are valid values. Only its
        // atomic fields are changed by the server.
        let request = unsafe { self.0.shared.as_ref() };
        match (request.pid.load(Ordering::SeqCst), request.errno.load(Ordering::SeqCst)) {
            (0, 0 | UNUSABLE) => Outcome::Unavailable,
            (0, errno) => Outcome::Refused(io::Error::from_raw_os_error(errno)),
            (pid, _) => Outcome::Forked(pid),
        }
    }
}

/// For the server, which has one thread. All of it is async-signal-safe.
impl Mappings {
    /// The address of each mapping.
    pub(super) fn addresses(self) -> [usize; 2] {
        [self.shared, self.private].map(|mapping| mapping.as_ptr() as usize)
    }

    /// Leaves the shared memory out of the processes that this one forks.
    pub(super) fn keep_from_children(self) {
        // SAFETY: this is a whole mapping of `map`. The advice changes nothing for this process.
        unsafe { libc::madvise(self.shared.as_ptr().cast(), LENGTH, libc::MADV_DONTFORK) };
    }

    /// The private memory, for another purpose before the first request.
    ///
    /// # Safety
    /// The mappings must be valid, and nothing else may refer to the private one while the slice lives.
    pub(super) unsafe fn buffer<'a>(self) -> &'a mut [u8] {
        // SAFETY: the mapping has this length; the rest is the contract of this function.
        unsafe { std::slice::from_raw_parts_mut(self.private.as_ptr().cast(), LENGTH) }
    }

    /// The request in the shared memory.
    ///
    /// # Safety
    /// The mappings must be valid, and the daemon must wait for an answer.
    pub(super) unsafe fn shared<'a>(self) -> &'a Request {
        // SAFETY: the mapping is aligned and holds what the daemon has written; it does not change it while it waits.
        unsafe { self.shared.as_ref() }
    }

    /// Copies the request from the shared to the private memory.
    ///
    /// # Safety
    /// The mappings must be valid, the daemon must wait for an answer, and nothing may refer to the private mapping.
    pub(super) unsafe fn take<'a>(self) -> &'a Request {
        // SAFETY: the contract is the same.
        let length = unsafe { self.shared() }.length.min(LENGTH);
        // SAFETY: both mappings have at least this length and do not overlap.
        unsafe { ptr::copy_nonoverlapping(self.shared.as_ptr().cast::<u8>(), self.private.as_ptr().cast(), length) };
        // SAFETY: the mapping is aligned and holds the copy of a request.
        unsafe { self.private.as_ref() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is gone, and nothing else in this process uses its mappings.
        unsafe { unmap(self.0.shared) };
        // SAFETY: as above.
        unsafe { unmap(self.0.private) };
    }
}

fn map(flags: libc::c_int) -> io::Result<NonNull<Request>> {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address that the kernel chooses affects no other memory.
    let address = unsafe { libc::mmap(ptr::null_mut(), LENGTH, access, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| Errno::ENOMEM.into())
}

/// Unmaps what [`map`] has returned.
///
/// # Safety
/// Nothing in this process may use the mapping afterwards.
unsafe fn unmap(mapping: NonNull<Request>) {
    // SAFETY: this is a whole mapping of `map`, and by contract it is not used again.
    unsafe { libc::munmap(mapping.as_ptr().cast(), LENGTH) };
}

/// Appends to the shared memory, with pointers to where the bytes will be in the private memory.
struct Writer<'a> {
    bytes: &'a mut [u8],
    /// The address of the private memory.
    base: usize,
    /// Number of bytes in use.
    length: usize,
}

/// Each method returns None if there is not enough room.
impl Writer<'_> {
    fn program(&mut self, launch: &Launch) -> Option<Program> {
        Some(Program {
            paths: self.array(&launch.programs)?,
            argv: self.array(&launch.argv)?,
            envp: self.array(&launch.envp)?,
            dir: match &launch.dir {
                Some(dir) => self.bytes(dir.to_bytes_with_nul())? as *const c_char,
                None => ptr::null(),
            },
            home: self.bytes(launch.home.to_bytes_with_nul())? as *const c_char,
            groups: self.numbers(launch.groups.iter().map(|group| group.to_ne_bytes()))? as *const u32,
            group_count: launch.groups.len(),
            uid: launch.uid,
            gid: launch.gid,
        })
    }

    /// The strings, and the null-terminated array of pointers to them.
    fn array(&mut self, strings: &StringArray) -> Option<*const *const c_char> {
        let mut first = self.base + self.length;
        for string in strings.iter() {
            self.bytes(string.to_bytes_with_nul())?;
        }
        let addresses = strings.iter().map(|string| {
            let address = first;
            first += string.count_bytes() + 1;
            address.to_ne_bytes()
        });
        Some(self.numbers(addresses.chain([0usize.to_ne_bytes()]))? as *const *const c_char)
    }

    /// Returns the address of the bytes.
    fn bytes(&mut self, bytes: &[u8]) -> Option<usize> {
        let at = self.length;
        let end = at.checked_add(bytes.len())?;
        self.bytes.get_mut(at..end)?.copy_from_slice(bytes);
        self.length = end;
        Some(self.base + at)
    }

    /// Returns the address of the first of these numbers of N bytes, which is aligned for them.
    fn numbers<const N: usize>(&mut self, numbers: impl Iterator<Item = [u8; N]>) -> Option<usize> {
        self.length = self.length.next_multiple_of(N);
        let address = self.base + self.length;
        for number in numbers {
            self.bytes(&number)?;
        }
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{CStr, CString};

    use super::*;
    use crate::spawn::child::ControllingTerminal;

    fn setup() -> Setup {
        let terminal = ControllingTerminal::None;
        let (limits, open_files, nproc) = (None, None, None);
        Setup {
            stdio: [0, 1, 2],
            terminal,
            report: 3,
            cgroup: None,
            limits,
            open_files,
            nproc,
            set_groups: true,
            by_server: true,
            session_keyring: true,
            no_new_privs: false,
        }
    }

    fn launch(argument: CString) -> Launch {
        let strings =
            |strings: &[&CStr]| StringArray::new(strings.iter().map(|string| CString::from(*string)).collect());
        Launch {
            programs: strings(&[c"/bin/a", c"/usr/bin/a"]),
            argv: strings(&[c"a", c"", &argument]),
            envp: strings(&[]),
            dir: Some(CString::from(c"/dir")),
            home: CString::from(c"/home"),
            uid: 1,
            gid: 2,
            groups: vec![3, 4, 5],
            open_files: None,
            no_new_privs: false,
        }
    }

    /// The strings of a null-terminated array.
    ///
    /// # Safety
    /// The pointers must be valid.
    unsafe fn strings<'a>(array: *const *const c_char) -> Vec<&'a CStr> {
        // SAFETY: the array ends with a null pointer, which ends the iteration; so no element beyond it is read.
        let elements = (0..).map(|at| unsafe { *array.wrapping_add(at) }).take_while(|element| !element.is_null());
        // They were written as addresses, which only the kernel follows elsewhere.
        let elements = elements.map(|element| ptr::with_exposed_provenance(element.addr()));
        // SAFETY: the elements point to C strings by contract.
        elements.map(|element| unsafe { CStr::from_ptr(element) }).collect()
    }

    /// A region; in Miri, which has no shared mappings, one of two private ones. One process alone does not tell them apart.
    fn region() -> Region {
        if cfg!(miri) {
            let map = || map(libc::MAP_PRIVATE).unwrap();
            return Region(Mappings { shared: map(), private: map() });
        }
        Region::map().unwrap()
    }

    #[test]
    fn the_server_takes_what_the_daemon_has_written() {
        let mut region = region();
        // Twice: a request replaces the one before it.
        for argument in [c"a longer argument", c"b"] {
            assert!(region.write(&launch(CString::from(argument)), &setup(), Some(4), 5));
            // SAFETY: the region lives, and nobody else uses it.
            let request = unsafe { region.mappings().take() };
            assert_eq!((request.descriptors, request.cgroup, request.setup.report), (5, Some(4), 3));
            let program = &request.program;
            // SAFETY: the pointers are those to the private mapping, which was just filled.
            let arrays = [program.paths, program.argv, program.envp].map(|array| unsafe { strings(array) });
            assert_eq!(arrays, [vec![c"/bin/a", c"/usr/bin/a"], vec![c"a", c"", argument], vec![]]);
            // SAFETY: as above.
            let dirs = [program.dir, program.home].map(|dir| unsafe { CStr::from_ptr(dir) });
            assert_eq!((dirs, program.uid, program.gid), ([c"/dir", c"/home"], 1, 2));
            // SAFETY: as above.
            let groups = unsafe { std::slice::from_raw_parts(program.groups, program.group_count) };
            assert_eq!(groups, [3, 4, 5]);
            assert!(matches!(region.outcome(), Outcome::Unavailable));
        }
    }

    // It takes minutes in Miri.
    #[cfg_attr(miri, ignore)]
    #[test]
    fn a_request_that_fills_the_region_fits_and_a_longer_one_does_not() {
        let mut region = region();
        let of_length = |length| launch(CString::new(vec![b'x'; length]).unwrap());
        let mut fits = |length| region.write(&of_length(length), &setup(), None, 4);
        let longest = (0..LENGTH).rev().find(|length| fits(*length)).unwrap();
        assert!(longest > LENGTH / 2 && !fits(longest + 1) && !fits(LENGTH));
        assert!(fits(longest));
        // SAFETY: the region lives, and nobody else uses it.
        let request = unsafe { region.mappings().take() };
        // SAFETY: the pointers are those to the private mapping, which was just filled.
        let argv = unsafe { strings(request.program.argv) };
        assert_eq!(argv.last().map(|argument| argument.count_bytes()), Some(longest));
    }
}
