//! The places where a test can make a thread panic.

/// Calls `use_name` with the name of the calling thread. The main thread of a program with
/// [`entry_point`](crate::entry_point!) is `main`, as in any other program.
pub fn with_name<T>(use_name: impl FnOnce(&str) -> T) -> T {
    use_name(std::thread::current().name().unwrap_or("main"))
}

/// In a build with the feature `fault-injection`, panics if a test asks this thread to: if the directory that the
/// environment variable `TL_FAULTS` names contains a file with the name of the thread, which is removed. Otherwise does
/// nothing. Each thread that outlives the call that started it calls this once per turn, most of them by [`idle`](super::idle).
#[inline]
pub fn fault_point() {
    #[cfg(feature = "fault-injection")]
    if let Some(dir) = std::env::var_os("TL_FAULTS")
        && with_name(|name| std::fs::remove_file(std::path::Path::new(&dir).join(name))).is_ok()
    {
        std::panic::panic_any("a fault that a test has injected");
    }
}
