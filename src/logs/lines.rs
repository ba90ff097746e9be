//! Splits the bytes of one stream into lines (docs/api.md, Output).
//!
//! A line is the bytes between two newlines. A line longer than [`MAX_LINE`] is returned in pieces, all of them partial
//! except the last. The cuts depend only on the bytes, not on the chunks in which they arrive.

use memchr::memchr;

/// Maximum length of a piece of a line, in bytes.
pub const MAX_LINE: usize = 1024 * 1024;

/// Maximum length of a line that a reader holds in memory, in bytes. It keeps only the position of a longer line, and
/// reads the text from the log again while it is sent.
pub const MAX_HELD_LINE: usize = 16 * 1024;

/// A line, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The bytes, without the newline; None if there are more than the splitter keeps.
    pub bytes: Option<&'a [u8]>,
    /// The number of bytes, without the newline.
    pub length: usize,
    /// Whether more of the same line follows.
    pub partial: bool,
}

/// The result of [`Splitter::feed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed<'a> {
    /// Number of bytes of the input that were consumed.
    pub used: usize,
    /// The line or piece that they complete; None only if all of the input was consumed.
    pub piece: Option<Piece<'a>>,
}

/// The unfinished line of one stream.
///
/// It keeps the bytes of the line up to a bound, and only counts those of a longer line: a reader reads them again from
/// the log.
#[derive(Clone, Debug)]
pub struct Splitter {
    /// The bytes of the unfinished line; empty once it is longer than `keep`.
    bytes: Vec<u8>,
    length: usize,
    /// Number of bytes of `length` that the last call returned.
    given: usize,
    /// The last bytes of the unfinished line, at the end of the array.
    last: [u8; REST],
    max: usize,
    keep: usize,
}

/// Maximum number of bytes that a cut leaves for the next piece: the beginning of a UTF-8 character.
pub const REST: usize = 3;

impl Default for Splitter {
    fn default() -> Splitter {
        Splitter::new(MAX_LINE)
    }
}

impl Splitter {
    /// A splitter that cuts lines longer than `max` bytes, which is at least 4, and keeps the bytes of all lines.
    pub fn new(max: usize) -> Splitter {
        Splitter::keeping(max, max)
    }

    /// Like [`Splitter::new`], but keeps only the bytes of lines of at most `keep` bytes, which is at least 3.
    pub fn keeping(max: usize, keep: usize) -> Splitter {
        let (max, keep) = (max.max(REST + 1), keep.max(REST));
        Splitter { bytes: Vec::new(), length: 0, given: 0, last: [0; REST], max, keep }
    }

    /// Number of bytes of the unfinished line.
    pub fn held(&self) -> usize {
        self.length.saturating_sub(self.given)
    }

    /// The bytes of the unfinished line. None if there are none, or more than the splitter keeps.
    pub fn unfinished(&self) -> Option<&[u8]> {
        let is_kept = self.bytes.len() == self.length;
        self.bytes.get(self.given..).filter(|rest| is_kept && !rest.is_empty())
    }

    /// Consumes `input` up to the end of the next line or piece. Call it again with the rest.
    pub fn feed<'a>(&'a mut self, input: &'a [u8]) -> Fed<'a> {
        self.settle();
        let room = self.max.saturating_sub(self.length);
        // One byte more than fits: a newline there ends a line of the maximum length.
        let (window, _) = input.split_at(input.len().min(room + 1));
        if let Some(at) = memchr(b'\n', window) {
            let (line, _) = input.split_at(at);
            let used = at + 1;
            if self.length == 0 {
                let bytes = (at <= self.keep).then_some(line);
                return Fed { used, piece: Some(Piece { bytes, length: at, partial: false }) };
            }
            self.hold(line);
            return Fed { used, piece: Some(self.give(self.length, false)) };
        }
        let Some(&next) = window.get(room) else {
            self.hold(window);
            return Fed { used: window.len(), piece: None };
        };
        let (fitting, _) = window.split_at(room);
        self.hold(fitting);
        let rest = unfinished_character(&self.last, next);
        Fed { used: room, piece: Some(self.give(self.length - rest, true)) }
    }

    /// The line at the beginning of `input`, without its newline. None if `input` does not contain the whole line, because
    /// it began earlier or does not end here, or if the line is longer than the splitter keeps.
    pub fn whole_line<'a>(&self, input: &'a [u8]) -> Option<&'a [u8]> {
        if self.held() > 0 {
            return None;
        }
        let (window, _) = input.split_at(input.len().min(self.keep.min(self.max) + 1));
        memchr(b'\n', window).map(|at| input.split_at(at).0)
    }

    /// Ends the unfinished line, if there is one.
    pub fn flush(&mut self) -> Option<Piece<'_>> {
        self.settle();
        (self.length > 0).then(|| self.give(self.length, false))
    }

    /// Forgets the unfinished line.
    pub fn clear(&mut self) {
        self.bytes.clear();
        (self.length, self.given) = (0, 0);
    }

    /// Releases memory that the unfinished line does not need.
    pub fn shrink(&mut self) {
        self.settle();
        // A small amount is kept, because the next line would allocate it again at once.
        if self.bytes.capacity() > 2 * self.bytes.len() + 4096 {
            self.bytes.shrink_to_fit();
        }
    }

    fn hold(&mut self, more: &[u8]) {
        if self.length + more.len() <= self.keep {
            self.bytes.extend_from_slice(more);
        } else {
            self.bytes = Vec::new();
        }
        self.length += more.len();
        let kept = more.len().min(REST);
        self.last.copy_within(kept.., 0);
        for (to, from) in self.last.iter_mut().rev().zip(more.iter().rev()) {
            *to = *from;
        }
    }

    fn give(&mut self, length: usize, partial: bool) -> Piece<'_> {
        self.given = length;
        let is_kept = self.bytes.len() == self.length;
        Piece { bytes: self.bytes.get(..length).filter(|_| is_kept), length, partial }
    }

    /// Forgets the bytes that the last call returned.
    fn settle(&mut self) {
        if self.given == 0 {
            return;
        }
        let rest = self.length.saturating_sub(self.given);
        if self.bytes.len() == self.length {
            self.bytes.drain(..self.given);
        } else {
            // The rest of a line that was too long to keep is short again.
            self.bytes.extend_from_slice(self.last.get(REST.saturating_sub(rest)..).unwrap_or_default());
        }
        (self.length, self.given) = (rest, 0);
    }
}

/// The number of bytes at the end of `full` that begin a UTF-8 character continued by `next`. The cut must not split
/// it.
fn unfinished_character(full: &[u8], next: u8) -> usize {
    for back in 1..=REST {
        let start = full.len().saturating_sub(back);
        let Some(tail) = full.get(start..) else { break };
        let length = match tail.first() {
            Some(0x80..=0xBF) => continue,
            Some(0xC2..=0xDF) => 2,
            Some(0xE0..=0xEF) => 3,
            Some(0xF0..=0xF4) => 4,
            _ => 1,
        };
        if length <= back {
            break;
        }
        let mut character = [0; 4];
        for (to, from) in character.iter_mut().zip(tail.iter().chain([&next])) {
            *to = *from;
        }
        let valid = match std::str::from_utf8(character.get(..=back).unwrap_or_default()) {
            Ok(_) => true,
            Err(error) => error.error_len().is_none(),
        };
        return if valid { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A simple reference implementation on all bytes at once.
    fn model(bytes: &[u8], max: usize) -> Vec<(Vec<u8>, bool)> {
        let mut out = Vec::new();
        let mut lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
        if lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        for mut line in lines {
            while line.len() > max {
                let mut at = max;
                for back in 1..=3 {
                    // A character that begins before the cut and continues after it.
                    let rest = &line[max - back..(max + 1).min(line.len())];
                    let continues = |e: std::str::Utf8Error| e.valid_up_to() == 0 && e.error_len().is_none();
                    let whole = std::str::from_utf8(rest);
                    let one = whole.is_ok_and(|text| text.chars().count() == 1);
                    if one || whole.is_err_and(continues) {
                        at = max - back;
                        break;
                    }
                }
                out.push((line[..at].to_vec(), true));
                line = &line[at..];
            }
            out.push((line.to_vec(), false));
        }
        out
    }

    fn split(chunks: &[&[u8]], max: usize) -> Vec<(Vec<u8>, bool)> {
        let counted = lengths(chunks, max);
        let mut splitter = Splitter::new(max);
        let mut out = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            loop {
                let fed = splitter.feed(rest);
                rest = &rest[fed.used..];
                match fed.piece {
                    Some(piece) => out.push((piece.bytes.unwrap().to_vec(), piece.partial)),
                    None => break assert!(rest.is_empty()),
                }
                assert!(splitter.held() <= max);
                assert_eq!(splitter.unfinished().map_or(0, <[u8]>::len), splitter.held());
            }
        }
        out.extend(splitter.flush().map(|piece| (piece.bytes.unwrap().to_vec(), piece.partial)));
        assert!(splitter.flush().is_none());
        assert!(out.iter().map(|(bytes, partial)| (bytes.len(), *partial)).eq(counted));
        out
    }

    /// The lengths of the pieces from a splitter that keeps at most 5 bytes of a line.
    fn lengths(chunks: &[&[u8]], max: usize) -> Vec<(usize, bool)> {
        let mut splitter = Splitter::keeping(max, 5);
        let mut out = Vec::new();
        let mut take = |piece: Piece<'_>| {
            assert!(piece.bytes.map_or(piece.length > 5 || piece.partial, |bytes| bytes.len() == piece.length));
            out.push((piece.length, piece.partial));
        };
        for chunk in chunks {
            let mut rest = *chunk;
            loop {
                let fed = splitter.feed(rest);
                rest = &rest[fed.used..];
                match fed.piece {
                    Some(piece) => take(piece),
                    None => break,
                }
            }
            assert!(splitter.bytes.capacity() < 20 || max < 20);
        }
        splitter.flush().into_iter().for_each(take);
        out
    }

    struct Random(u64);
    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }
    }

    #[test]
    fn the_cuts_do_not_depend_on_the_chunks() {
        let parts: [&[u8]; 13] = [
            b"a",
            b"bc",
            b"\n",
            b"\n\n",
            b"\r\n",
            b"\0",
            b"\xff",
            b"\xe2\x82",
            b"\xf0\x9f\x98",
            "é".as_bytes(),
            "€".as_bytes(),
            "😀".as_bytes(),
            b"\x80",
        ];
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        for round in 0..20_000 {
            let bytes: Vec<u8> =
                (0..random.below(24)).flat_map(|_| parts[random.below(parts.len())].to_vec()).collect();
            let mut chunks = Vec::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (chunk, more) = rest.split_at(1 + random.below(rest.len().min(9)));
                chunks.push(chunk);
                rest = more;
            }
            let max = [4, 5, 7, 11, 1000][round % 5];
            assert_eq!(split(&chunks, max), model(&bytes, max), "{bytes:x?} in {chunks:x?}, max {max}");
        }
    }

    #[test]
    fn a_line_of_the_maximum_length_is_one_piece() {
        let line = vec![b'x'; MAX_LINE];
        let with =
            |end: &[u8]| split(&[&line, end], MAX_LINE).into_iter().map(|(l, p)| (l.len(), p)).collect::<Vec<_>>();
        assert_eq!(with(b""), [(MAX_LINE, false)]);
        assert_eq!(with(b"\n"), [(MAX_LINE, false)]);
        assert_eq!(with(b"\n\n"), [(MAX_LINE, false), (0, false)]);
        assert_eq!(with(b"y"), [(MAX_LINE, true), (1, false)]);
        assert_eq!(with(b"y\n"), [(MAX_LINE, true), (1, false)]);
    }

    #[test]
    fn a_cut_does_not_split_a_valid_utf_8_character() {
        let cut = |text: &[u8]| split(&[text], 4)[0].0.len();
        assert_eq!(cut("abcé".as_bytes()), 3);
        assert_eq!(cut("ab€".as_bytes()), 2);
        assert_eq!(cut("a😀".as_bytes()), 1);
        assert_eq!(cut("😀b".as_bytes()), 4);
        assert_eq!(cut(b"abc\xe2x"), 4, "the sequence is not valid UTF-8");
        assert_eq!(cut(b"abc\x80\x80"), 4);
        assert_eq!(cut(b"\x80\x80\x80\x80\x80"), 4);
    }
}
