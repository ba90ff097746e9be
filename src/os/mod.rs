//! The operating system: each file is one thing that the kernel does for us.

pub mod accounts;
pub mod cgroup;
pub mod child;
pub mod clock;
pub mod disposition;
pub mod dying;
pub mod fork;
pub mod fsuser;
pub mod launch;
pub mod limits;
pub mod loopback;
pub mod memory;
pub mod mountinfo;
pub mod own_cgroup;
pub mod pidfd;
pub mod pipe;
pub mod poll;
pub mod procfs;
pub mod pty;
pub mod random;
pub mod sigmask;
pub mod spawn;
pub mod tasks;
pub mod tcp;
pub mod tree;
pub mod wait;
