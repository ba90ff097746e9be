//! Random bytes of the kernel's, for names and tokens that nobody can guess.

use std::io;

use nix::errno::Errno;

/// So many random bytes.
///
/// # Errors
/// What `getrandom(2)` says. It waits until the kernel has gathered enough, once after a boot.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256, "the kernel gives up to 256 bytes whole") };
    let mut random = [0; N];
    loop {
        // SAFETY: the buffer is valid for writing for its length.
        let got = Errno::result(unsafe { libc::getrandom(random.as_mut_ptr().cast(), N, 0) });
        match got {
            Ok(_) => return Ok(random),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The same in lower-case hexadecimal, two digits a byte.
///
/// # Errors
/// As [`bytes`].
pub fn hex<const N: usize>() -> io::Result<String> {
    Ok(bytes::<N>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same() {
        assert_ne!(bytes::<16>().unwrap(), bytes::<16>().unwrap());
        let hex = hex::<16>().unwrap();
        assert!(hex.len() == 32 && hex.bytes().all(|digit| digit.is_ascii_hexdigit()), "{hex}");
    }
}
