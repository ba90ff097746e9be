//! The operating system: each file is one thing that the kernel does for us.

pub mod accounts;
pub mod cgroup;
pub mod child;
pub mod clock;
pub mod disposition;
pub mod fsuser;
pub mod launch;
pub mod limits;
pub mod loopback;
pub mod memory;
pub mod pipe;
pub mod poll;
pub mod pty;
pub mod random;
pub mod spawn;
pub mod tcp;
pub mod tree;
pub mod wait;
pub mod xattr;
