#![no_main]
// The program is no library, so this target contains the files of it that parse `init.conf`.
#![allow(dead_code, unused_imports)]

#[path = "../../init/src/args.rs"]
mod args;
#[path = "../../init/src/config.rs"]
mod config;
#[path = "../../init/src/create_user.rs"]
mod create_user;
#[path = "../../init/src/files.rs"]
mod files;
#[path = "../../init/src/invariants.rs"]
mod invariants;
#[path = "../../init/src/options.rs"]
mod options;
#[path = "../../init/src/role.rs"]
mod role;

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::init_conf(input));
