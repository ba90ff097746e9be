#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tl_supervisor::fuzzing::check("archive", input));
