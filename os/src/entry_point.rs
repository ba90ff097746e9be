//! An entry point of a program without Rust's own start-up code.

/// Makes `$start`, a `fn() -> u8` that returns the exit status, the program's entry point: what the C library calls as
/// `main`. The program needs `#![no_main]`.
///
/// Rust's own start-up code ends the process if one of the descriptors 0 to 2 is closed and `/dev/null` does not exist,
/// as in an initramfs without `/dev`. With this macro that code does not run. `std::env::args` still works.
///
/// Before `$start`, glibc is told to use few arenas ([`allocator::share_arenas`](crate::allocator::share_arenas)).
///
/// `$start` must not panic: unwinding out of it aborts the process.
#[macro_export]
macro_rules! entry_point {
    ($start:path) => {
        // In a block of its own: nothing else in the program can call it.
        const _: () = {
            // SAFETY: in a program with `#![no_main]` no other symbol has this name; in any other program the linker
            // refuses the second one. The signature is the one that the C library calls.
            #[unsafe(export_name = "main")]
            extern "C" fn c_main(_: ::std::ffi::c_int, _: *const *const ::std::ffi::c_char) -> ::std::ffi::c_int {
                let start: fn() -> u8 = $start;
                // SAFETY: the C library calls this function once, before any code of the program that starts a thread.
                unsafe { $crate::allocator::share_arenas() };
                ::std::ffi::c_int::from(start())
            }
        };
    };
}
