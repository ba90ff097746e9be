//! The operating system: each file is one thing that the kernel does for us.

pub mod allocator;
pub mod cgroup;
pub mod child;
pub mod disposition;
pub mod dying;
pub mod entry_point;
pub mod fork;
pub mod fsuser;
pub mod launch;
pub mod limits;
pub mod loopback;
pub mod mountinfo;
pub mod own_cgroup;
pub mod pidfd;
pub mod pipe;
pub mod poll;
pub mod procfs;
pub mod pty;
pub mod random;
pub mod sigmask;
pub mod signals;
pub mod spawn;
pub mod tasks;
pub mod tcp;
pub mod thread;
pub mod tree;
pub mod wait;
pub mod xattr;

/// A process id as the kernel counts them; never 0 or negative for a process of ours.
pub type Pid = i32;
