//! Tests that drive the real tl-host, with an engine of their own (`podman`).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs)]

// Not every test program uses all of it.
#[allow(dead_code)]
mod harness;
mod order;
#[allow(dead_code)]
mod podman;

mod doctor;
mod engine_faults;
mod full_disk;
mod images;
mod import;
mod life;
mod many;
mod outside;
mod reboot;
mod speed;
mod suspension;
mod unreachable;
