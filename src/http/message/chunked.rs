//! Decodes a chunked body (RFC 9112, section 7.1) with constant memory. Bare line feeds are refused: another reader
//! might not take them for the end of a line.

use crate::http::connection::socket::copy;

/// Maximum length of the extensions in the size line of a chunk, in bytes.
const MAX_EXTENSION: usize = 256;

/// Maximum length of all trailer fields together, in bytes.
const MAX_TRAILER: usize = 8 << 10;

/// Maximum number of hexadecimal digits of a chunk's size: a chunk is smaller than 2^60 bytes.
const MAX_DIGITS: usize = 15;

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        value: u64,
        digits: usize,
    },
    Extension {
        size: u64,
        length: usize,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// A trailer line of which `line` bytes were read; `total` counts the bytes of all trailer lines.
    Trailer {
        line: usize,
        total: usize,
    },
    TrailerEnd {
        line: usize,
        total: usize,
    },
    Done,
}

/// Decodes one chunked body (RFC 9112, section 7.1), with constant memory.
///
/// ```
/// use tl_supervisor::http::message::ChunkedDecoder;
///
/// let (mut decoder, mut out) = (ChunkedDecoder::new(), [0; 16]);
/// let (taken, given) = decoder.decode(b"5\r\nhello\r\n0\r\n\r\nnext", &mut out)?;
/// assert!(decoder.is_done() && taken == 15 && &out[..given] == b"hello");
/// # Ok::<(), &'static str>(())
/// ```
#[derive(Debug)]
pub struct Decoder(State);

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a body.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder(State::Size { value: 0, digits: 0 })
    }

    /// Whether the last chunk and the trailer have been decoded.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// Decodes from `input` into `out`. Returns how many bytes it took from `input`, and how many it put into `out`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the body.
    pub fn decode(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), &'static str> {
        let (mut taken, mut given) = (0, 0);
        while let Some(&byte) = input.get(taken) {
            match self.0 {
                State::Done => break,
                State::Data { left } => {
                    let most = usize::try_from(left).unwrap_or(usize::MAX);
                    let source = input.get(taken..).unwrap_or_default();
                    let source = source.get(..most).unwrap_or(source);
                    let count = copy(source, out.get_mut(given..).unwrap_or_default());
                    if count == 0 {
                        break;
                    }
                    (taken, given) = (taken + count, given + count);
                    let left = left - count as u64;
                    self.0 = if left == 0 { State::DataCr } else { State::Data { left } };
                }
                state => {
                    self.0 = step(state, byte)?;
                    taken += 1;
                }
            }
        }
        Ok((taken, given))
    }
}

fn step(state: State, byte: u8) -> Result<State, &'static str> {
    let digit = char::from(byte).to_digit(16).map(u64::from);
    match (state, byte) {
        (State::Size { digits, .. }, _) if digits > MAX_DIGITS => Err("a chunk is too large"),
        (State::Size { value, digits }, _) if digit.is_some() => {
            Ok(State::Size { value: value << 4 | digit.unwrap_or_default(), digits: digits + 1 })
        }
        (State::Size { digits: 0, .. }, _) => Err("a chunk must begin with its size in hexadecimal"),
        (State::Size { value: size, .. }, b'\r') => Ok(State::SizeEnd { size }),
        (State::Size { value: size, .. }, b';' | b' ' | b'\t') => Ok(State::Extension { size, length: 1 }),
        (State::Extension { size, .. }, b'\r') => Ok(State::SizeEnd { size }),
        (State::Extension { length, .. }, _) if length >= MAX_EXTENSION => Err("a chunk extension is too long"),
        (State::Extension { size, length }, _) if byte != b'\n' => Ok(State::Extension { size, length: length + 1 }),
        (State::SizeEnd { size: 0 }, b'\n') => Ok(State::Trailer { line: 0, total: 0 }),
        (State::SizeEnd { size }, b'\n') => Ok(State::Data { left: size }),
        (State::DataCr, b'\r') => Ok(State::DataLf),
        (State::DataLf, b'\n') => Ok(State::Size { value: 0, digits: 0 }),
        (State::Trailer { line, total }, b'\r') => Ok(State::TrailerEnd { line, total }),
        (State::Trailer { total, .. }, _) if total >= MAX_TRAILER => Err("the trailer is too long"),
        (State::Trailer { line, total }, _) if byte != b'\n' => Ok(State::Trailer { line: line + 1, total: total + 1 }),
        (State::TrailerEnd { line: 0, .. }, b'\n') => Ok(State::Done),
        (State::TrailerEnd { total, .. }, b'\n') => Ok(State::Trailer { line: 0, total }),
        _ => Err("a chunk is not delimited by CRLF, or is not as long as its size says"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `body`, given in pieces of `piece` bytes. Returns the decoded bytes, how many were taken, and whether
    /// the decoder is done.
    fn decode(body: &[u8], piece: usize) -> Result<(Vec<u8>, usize, bool), &'static str> {
        let (mut decoder, mut text, mut taken) = (Decoder::new(), Vec::new(), 0);
        for part in body.chunks(piece) {
            let mut part = part;
            loop {
                let mut out = [0; 3];
                let (took, gave) = decoder.decode(part, &mut out)?;
                text.extend_from_slice(&out[..gave]);
                (part, taken) = (&part[took..], taken + took);
                if took == 0 || part.is_empty() {
                    break;
                }
            }
        }
        Ok((text, taken, decoder.is_done()))
    }

    #[test]
    fn a_body_decodes_alike_however_its_bytes_arrive() {
        let body = b"5\r\nhello\r\n06;a=\"b\"\r\n world\r\n0\r\nTrailer: x\r\n\r\nGET /";
        for piece in 1..body.len() {
            assert_eq!(decode(body, piece), Ok((b"hello world".to_vec(), body.len() - 5, true)), "{piece}");
        }
        assert_eq!(decode(b"0\r\n\r\n", 9), Ok((Vec::new(), 5, true)));
        assert_eq!(decode(b"A\r\n012345678", 9), Ok((b"012345678".to_vec(), 12, false)));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let long = format!("1;{}\r\n", "a".repeat(300));
        let trailer = format!("0\r\n{}", "a: b\r\n".repeat(3000));
        for body in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "5\nhello",
            "5\r\rhello",
            "5\r\nhello!\r\n",
            "5\r\nhello\n",
            "1\r\na\r\r",
            "10000000000000000\r\n",
            "0\r\n\n",
            "0\r\na\nb",
            &long,
            &trailer,
        ] {
            assert!(decode(body.as_bytes(), body.len()).is_err(), "{body:?}");
        }
    }
}
