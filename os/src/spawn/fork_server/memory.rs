//! Gives back the memory that the fork server has inherited from the daemon and does not need: heap, and the stacks of
//! other threads. What is left makes its forks fast. Async-signal-safe.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::read;

/// Unmaps all memory of this process that holds neither code nor static data, except the mappings that contain one of
/// the addresses `kept`. `buffer` is for the list of mappings; those that do not fit are kept.
///
/// Returns whether no heap is left. Where the kernel puts the heap right behind the static data
/// (`kernel.randomize_va_space` below 2), both can be one mapping, which is kept.
///
/// # Safety
/// Only for a process with one thread that uses no other memory from now on: no heap, and nothing that was borrowed
/// from it.
pub(super) unsafe fn release(buffer: &mut [u8], kept: &[usize]) -> Result<bool, Errno> {
    // The sanitizers have memory of their own, which `tests/sanitizers` needs.
    if cfg!(tl_sanitize) {
        return Ok(false);
    }
    let length = read_maps(buffer)?;
    let mut is_clean = length < buffer.len();
    let mut previous = Mapping::default();
    for line in buffer.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
        let Some(mapping) = Mapping::parse(line) else { continue };
        let is_kept = mapping.is_needed(&previous) || kept.iter().any(|address| mapping.contains(*address));
        if is_kept {
            is_clean &= !mapping.is_heap;
        } else {
            // SAFETY: by contract, nothing in this mapping is used from now on.
            unsafe { libc::munmap(mapping.start as *mut libc::c_void, mapping.end - mapping.start) };
        }
        previous = mapping;
    }
    Ok(is_clean)
}

/// Reads the list of this process's mappings (proc_pid_maps(5)). Returns its length, at most that of the buffer.
fn read_maps(buffer: &mut [u8]) -> Result<usize, Errno> {
    let file = open(c"/proc/self/maps", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut length = 0;
    while let Some(room) = buffer.get_mut(length..).filter(|room| !room.is_empty()) {
        match read(&file, room) {
            Ok(count @ 1..) => length += count,
            _ => break,
        }
    }
    Ok(length)
}

/// A line of the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mapping {
    start: usize,
    end: usize,
    /// Whether it shows a file: a program, a library, or shared memory.
    is_file: bool,
    /// Whether the kernel has made it for its own purposes, such as `[vdso]`. The heap and the stack of the main thread
    /// are not such mappings.
    is_special: bool,
    /// Whether it is the heap, or contains it.
    is_heap: bool,
}

impl Mapping {
    /// Parses a whole line; None if it is cut off or malformed.
    fn parse(line: &[u8]) -> Option<Mapping> {
        let line = line.strip_suffix(b"\n")?;
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let range = fields.next()?;
        let dash = range.iter().position(|byte| *byte == b'-')?;
        let (start, end) = (hexadecimal(range.get(..dash)?)?, hexadecimal(range.get(dash + 1..)?)?);
        let inode = fields.nth(3)?;
        let name = fields.next().unwrap_or_default();
        let is_special =
            name.starts_with(b"[") && !matches!(name, b"[heap]" | b"[stack]") && !name.starts_with(b"[anon");
        Some(Mapping { start, end, is_file: inode != b"0", is_special, is_heap: name == b"[heap]" })
    }

    fn contains(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Whether it holds code or static data. The data that a program or library has no bytes in its file for (`.bss`)
    /// follows its file's mappings at once.
    fn is_needed(&self, previous: &Mapping) -> bool {
        self.is_file || self.is_special || previous.is_file && previous.end == self.start
    }
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    digits.iter().try_fold(0usize, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        value.checked_mul(16)?.checked_add(digit as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_and_stacks_are_not_needed_but_code_static_data_and_special_mappings_are() {
        let maps = b"\
55d0c0000000-55d0c0200000 r-xp 00001000 fe:00 1234                       /sbin/init
55d0c0200000-55d0c0210000 rw-p 00200000 fe:00 1234                       /sbin/init
55d0c0210000-55d0c0220000 rw-p 00000000 00:00 0
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 ---p 00000000 00:00 0
7f0000001000-7f0000041000 rw-p 00000000 00:00 0
7f0000100000-7f0000140000 rw-s 00000000 00:01 99                         /dev/zero (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
7ffc00100000-7ffc00102000 r-xp 00000000 00:00 0                          [vdso]
7ffc00200000-7ffc0";
        let mut previous = Mapping::default();
        let mut needed = Vec::new();
        for line in maps.split_inclusive(|byte| *byte == b'\n') {
            let Some(mapping) = Mapping::parse(line) else { continue };
            needed.push(mapping.is_needed(&previous));
            previous = mapping;
        }
        assert_eq!(needed, [true, true, true, false, false, false, true, false, true]);
    }

    #[test]
    fn the_list_of_this_process_is_read_and_contains_its_stack() {
        let mut buffer = vec![0; 256 << 10];
        let length = read_maps(&mut buffer).unwrap();
        let address = &raw const length as usize;
        let lines = buffer[..length].split_inclusive(|byte| *byte == b'\n');
        assert_eq!(lines.filter_map(Mapping::parse).filter(|mapping| mapping.contains(address)).count(), 1);
    }

    #[test]
    fn a_malformed_line_is_no_mapping() {
        for line in [&b""[..], b"\n", b"1000-2000 rw-p 0 00:00 0", b"x-y rw-p 0 00:00 0\n", b"1000 rw-p 0 0 0\n"] {
            assert_eq!(Mapping::parse(line), None, "{line:?}");
        }
    }
}
