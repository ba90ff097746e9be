//! The compression of an archive.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

/// Bytes that are read at once.
const BUFFER: usize = 128 << 10;

/// The first bytes of formats that are known but not supported.
const UNSUPPORTED: [(&[u8], &str); 5] = [
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
];

/// The first bytes of gzip (RFC 1952).
const GZIP: &[u8] = b"\x1f\x8b";

/// A writer that compresses into `out`.
pub(super) fn encoder<W: Write>(out: W) -> GzEncoder<W> {
    // Level 1 is several times as fast as the default, and makes source code about a tenth larger.
    GzEncoder::new(out, Compression::fast())
}

/// What an archive is read from.
pub(super) enum Source<'i> {
    Plain(BufReader<&'i mut dyn Read>),
    Gzip(Box<BufReader<MultiGzDecoder<BufReader<&'i mut dyn Read>>>>),
}

/// Why an archive cannot be read.
pub(super) enum Unreadable {
    Empty,
    /// It has the form of this program.
    Compressed(&'static str),
    Io(io::Error),
}

impl<'i> Source<'i> {
    /// Recognises the compression by the first bytes.
    pub(super) fn recognise(input: &'i mut dyn Read) -> Result<Source<'i>, Unreadable> {
        let mut input = BufReader::with_capacity(BUFFER, input);
        let begin = input.fill_buf().map_err(Unreadable::Io)?;
        if begin.is_empty() {
            return Err(Unreadable::Empty);
        }
        if let Some((_, name)) = UNSUPPORTED.iter().find(|(magic, _)| begin.starts_with(magic)) {
            return Err(Unreadable::Compressed(name));
        }
        // A read can return a single byte. No name in an archive begins with the first byte of gzip.
        if begin.first() == GZIP.first()
            && GZIP.get(..begin.len()).unwrap_or(GZIP) == begin.get(..GZIP.len()).unwrap_or(begin)
        {
            return Ok(Source::Gzip(Box::new(BufReader::new(MultiGzDecoder::new(input)))));
        }
        Ok(Source::Plain(input))
    }
}

impl Read for Source<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Plain(input) => input.read(out),
            Source::Gzip(input) => input.read(out),
        }
    }
}

/// Whether an error means that compressed bytes are malformed.
pub(super) fn is_corrupt(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData)
}
