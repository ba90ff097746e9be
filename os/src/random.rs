//! Random bytes from the kernel, for names and tokens that cannot be guessed.

use std::io;

use nix::errno::Errno;

/// Returns `N` random bytes, at most 256. Blocks until the kernel's generator is initialised, which can take a while
/// after a boot.
///
/// # Errors
/// What `getrandom(2)` says.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256, "the kernel returns up to 256 bytes at once") };
    let mut random = [0; N];
    loop {
        // SAFETY: the buffer is valid for writing for its length, N.
        let got = Errno::result(unsafe { libc::getrandom(random.as_mut_ptr().cast(), N, 0) });
        match got {
            Ok(_) => return Ok(random),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Returns `N` random bytes in lower-case hexadecimal, two digits for each byte.
///
/// # Errors
/// What `getrandom(2)` says.
pub fn hex<const N: usize>() -> io::Result<String> {
    Ok(bytes::<N>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ_and_hex_is_hexadecimal() {
        assert_ne!(bytes::<16>().unwrap(), bytes::<16>().unwrap());
        let hex = hex::<16>().unwrap();
        assert!(hex.len() == 32 && hex.bytes().all(|digit| digit.is_ascii_hexdigit()), "{hex}");
    }
}
