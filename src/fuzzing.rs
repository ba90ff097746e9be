//! The fuzz targets of the library (`fuzz/`): each checks what must hold for every input of a parser or of a state
//! machine, and panics if it does not.
//!
//! The checks are in files named `invariants.rs`, beside the private code that they examine. All of this is compiled only
//! for fuzzing (`--cfg fuzzing`) and in unit tests, which check the seeds.

#![allow(clippy::panic, clippy::indexing_slicing)]

/// Checks one input.
pub type Check = fn(&[u8]);

/// Each target of the library: its name, which is also that of the directory of its seeds, and its check.
#[cfg(feature = "http")]
pub const TARGETS: &[(&str, Check)] = &[
    ("chunked_body", crate::http::message::invariants::chunked_body),
    ("fleet", crate::unit::fleet::invariants::fleet),
    ("header_values", crate::http::invariants::header_values),
    ("health", crate::health::invariants::health),
    ("json_bodies", crate::http::invariants::json_bodies),
    ("line_splitter", crate::logs::invariants::line_splitter),
    ("log_reader", crate::logs::invariants::log_reader),
    ("passwd", crate::users::invariants::passwd),
    ("paths", crate::http::invariants::paths),
    ("request_head", crate::http::message::invariants::request_head),
    ("limits", limits),
    ("unit", crate::unit::invariants::unit),
    ("websocket", crate::http::ws::invariants::websocket),
];

/// The same without the feature `http`.
#[cfg(not(feature = "http"))]
pub const TARGETS: &[(&str, Check)] = &[
    ("fleet", crate::unit::fleet::invariants::fleet),
    ("health", crate::health::invariants::health),
    ("line_splitter", crate::logs::invariants::line_splitter),
    ("log_reader", crate::logs::invariants::log_reader),
    ("passwd", crate::users::invariants::passwd),
    ("limits", limits),
    ("unit", crate::unit::invariants::unit),
];

/// Retention and the rate limit.
fn limits(input: &[u8]) {
    match input.split_first() {
        Some((0..128, rest)) => crate::logs::invariants::retention(rest),
        Some((_, rest)) => crate::rate_limit::invariants::rate_limit(rest),
        None => {}
    }
}

/// Checks one input of the target with this name.
///
/// # Panics
/// If an invariant does not hold, or there is no such target.
pub fn check(target: &str, input: &[u8]) {
    match TARGETS.iter().find(|(name, _)| *name == target) {
        Some((_, check)) => check(input),
        None => panic!("there is no fuzz target {target}"),
    }
}

/// Reads an input as a sequence of decisions. At its end every decision is 0.
#[derive(Clone, Debug)]
pub(crate) struct Choices<'i>(pub(crate) &'i [u8]);

impl<'i> Choices<'i> {
    /// Whether the input is used up.
    pub(crate) fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// A number below `n`, which is from 1 to 256.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    /// One of several values.
    pub(crate) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        let at = self.below(values.len());
        values[at]
    }

    /// A number of which small values are likely: up to eight bytes, whose count is the first choice.
    pub(crate) fn number(&mut self) -> u64 {
        let bytes = self.below(9);
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// Up to `most` bytes, whose number is the first choice. `most` is at most 255.
    pub(crate) fn bytes(&mut self, most: usize) -> &'i [u8] {
        let count = self.below(most + 1).min(self.0.len());
        let (bytes, rest) = self.0.split_at(count);
        self.0 = rest;
        bytes
    }

    /// The rest of the input, cut into pieces of chosen lengths up to `most`, which `plan` chooses again and again.
    pub(crate) fn pieces<'b>(plan: &[u8], bytes: &'b [u8], most: usize) -> Vec<&'b [u8]> {
        let mut lengths = plan.iter().cycle();
        let (mut pieces, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            let length = lengths.next().map_or(most, |byte| 1 + usize::from(*byte) % most).min(rest.len());
            let (piece, after) = rest.split_at(length);
            pieces.push(piece);
            rest = after;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_target_has_seeds_and_holds_for_them() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        for (target, check) in TARGETS {
            let files: Vec<_> = fs::read_dir(seeds.join(target)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{target}");
            for file in files {
                println!("{}", file.display());
                check(&fs::read(&file).unwrap());
            }
        }
    }
}
