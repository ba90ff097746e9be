//! Prepares `docs/openapi.json` for the program, which serves it: without white space between its tokens, and compressed
//! by byte pair encoding to about a third. Expanding that takes a few lines (`src/http/api/openapi.rs`).

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const DOCUMENT: &str = "docs/openapi.json";

/// A pair is replaced only if it occurs at least so many times.
const FEWEST: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={DOCUMENT}");
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_HTTP").is_none() {
        return Ok(());
    }
    let document = minified(&fs::read(DOCUMENT)?);
    if !document.is_ascii() {
        return Err(format!("{DOCUMENT} must be ASCII").into());
    }
    let (coded, pairs) = encoded(document);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("openapi.coded"), coded)?;
    fs::write(out.join("openapi.pairs"), pairs)?;
    Ok(())
}

/// JSON without the white space between its tokens.
fn minified(json: &[u8]) -> Vec<u8> {
    let (mut in_string, mut escaped) = (false, false);
    let mut kept = json.to_vec();
    kept.retain(|byte| {
        let keep = in_string || !byte.is_ascii_whitespace();
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            _ => {}
        }
        keep
    });
    kept
}

/// Replaces the most frequent pair of bytes by a byte that does not occur, again and again.
///
/// Also returns two bytes for each value of a byte: the pair that it stands for, or twice the value if it stands for
/// itself.
fn encoded(mut text: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let free: Vec<u8> = (0..=u8::MAX).filter(|byte| !text.contains(byte)).collect();
    let mut pairs: Vec<[u8; 2]> = (0..=u8::MAX).map(|byte| [byte, byte]).collect();
    for code in free {
        let Some(pair) = most_frequent(&text) else { break };
        if let Some(entry) = pairs.get_mut(usize::from(code)) {
            *entry = pair;
        }
        let mut rest = text.as_slice();
        let mut replaced = Vec::with_capacity(rest.len());
        while let Some((first, after)) = rest.split_first() {
            if rest.starts_with(&pair) {
                replaced.push(code);
                rest = after.get(1..).unwrap_or_default();
            } else {
                replaced.push(*first);
                rest = after;
            }
        }
        text = replaced;
    }
    (text, pairs.concat())
}

/// The pair that occurs most often; of several, the one with the highest bytes, so that every build gives the same.
fn most_frequent(text: &[u8]) -> Option<[u8; 2]> {
    let mut counts = vec![0_usize; 1 << 16];
    for (first, second) in text.iter().zip(text.iter().skip(1)) {
        if let Some(count) = counts.get_mut(usize::from(u16::from_be_bytes([*first, *second]))) {
            *count += 1;
        }
    }
    let (pair, count) = counts.iter().enumerate().max_by_key(|(_, count)| **count)?;
    let pair = u16::try_from(pair).ok()?.to_be_bytes();
    (*count >= FEWEST).then_some(pair)
}
