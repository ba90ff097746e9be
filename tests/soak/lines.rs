//! The text of every line that a process of the soak writes. The process and the checker compute it alike, so that each
//! byte of the output can be checked: a line depends on the tag of its process, the run and its number.

use std::sync::LazyLock;

use crate::harness::Random;

/// Size of [`FILLER`] in bytes, about.
const FILLER_SIZE: usize = 192 << 10;

/// More than any process writes at once, in bytes.
pub const LONGEST_WRITE: u64 = 128 << 10;

/// Characters of one to four bytes, none of them a newline; lines are filled with parts of it.
static FILLER: LazyLock<String> = LazyLock::new(|| {
    let mut random = Random(0x5eed);
    let mut text = String::with_capacity(FILLER_SIZE);
    while text.len() < FILLER_SIZE {
        match random.below(40) {
            0 => text.push(['é', '€', '𝄞', '\r', '\t', '"', '\\', '\u{0}'][random.below(8) as usize]),
            other => text.push(char::from(b'A' + (other + random.below(19)) as u8 % 58)),
        }
    }
    text
});

/// A hash of `parts` (FNV-1a, then the finalizer of SplitMix64).
pub fn hash(parts: &[&[u8]]) -> u64 {
    let mut value = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.iter().chain(b"\0")) {
        value = (value ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(value)
}

/// The finalizer of SplitMix64: neighbouring numbers get unrelated results. Never 0, so that it can start a [`Random`].
pub fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (value ^ (value >> 31)).max(1)
}

/// A generator that depends on all `parts`.
pub fn generator(parts: &[u64]) -> Random {
    Random(parts.iter().fold(1, |value, part| mix(value ^ mix(*part))))
}

/// The stream of line `number` of a run.
pub fn is_stdout(tag: &str, number: u64) -> bool {
    !hash(&[tag.as_bytes(), b"stream", &number.to_le_bytes()]).is_multiple_of(3)
}

/// The first line of each stream of a run. `run` is its INVOCATION_ID.
pub fn first_line(tag: &str, run: &str) -> String {
    format!("run {tag} {run}")
}

/// Line `number` of a run, without its newline. Most lines are short; one of 400 is longer than the capacity of a pipe
/// or than the 16 KiB that readers of logs keep.
pub fn line(tag: &str, run: &str, number: u64) -> String {
    let value = hash(&[tag.as_bytes(), run.as_bytes(), &number.to_le_bytes()]);
    let mut random = Random(value);
    let length = match random.below(400) {
        0 => 10_000 + random.below(90_000),
        1..=20 => random.below(4_000),
        _ => random.below(80),
    };
    let filler = part_of_filler(&mut random, length as usize);
    format!("{number} {filler} {value:016x}")
}

/// About `length` bytes of [`FILLER`].
pub fn part_of_filler(random: &mut Random, length: usize) -> &'static str {
    let from = random.below((FILLER.len() - length) as u64) as usize;
    let from = (from..).find(|at| FILLER.is_char_boundary(*at)).unwrap_or(0);
    let to = (from + length).min(FILLER.len());
    let to = (to..=FILLER.len()).find(|at| FILLER.is_char_boundary(*at)).unwrap_or(FILLER.len());
    &FILLER[from..to]
}

/// Pseudo-random bytes, for files and tunnels.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(mix(seed));
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(random.next_u64().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
