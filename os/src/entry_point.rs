//! A program's entry point below Rust's own start.

/// Makes `$start`, a `fn() -> u8`, what the C library calls as `main`; it gives the exit status. The program needs
/// `#![no_main]`.
///
/// Rust's own start ends the process where descriptors 0 to 2 are closed and there is no `/dev/null`, as in an initramfs
/// without `/dev`. With this macro nothing runs before `$start`. std has the command line already.
///
/// `$start` must not panic: unwinding into the C library aborts the process.
#[macro_export]
macro_rules! entry_point {
    ($start:path) => {
        // SAFETY: no other symbol of a program with `#![no_main]` has this name, and the signature is what the C library
        // calls.
        #[unsafe(export_name = "main")]
        extern "C" fn c_main(_: ::std::ffi::c_int, _: *const *const ::std::ffi::c_char) -> ::std::ffi::c_int {
            let start: fn() -> u8 = $start;
            ::std::ffi::c_int::from(start())
        }
    };
}
