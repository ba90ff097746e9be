//! What `tl-supervisor` and `tl-init` need of the Linux kernel, as functions that are safe to call.
//!
//! This is the only crate of the workspace with `unsafe` code. Its public functions are sound whatever their arguments,
//! or are `unsafe fn` with a `# Safety` section. Sound does not mean harmless: functions that change the whole process
//! (its limits, its signal dispositions, the exit status of its children) say so.
//!
//! The crate has no stability promise of its own. The crates that use it pin it with `=`.
//!
//! | module | what it does |
//! |---|---|
//! | [`allocator`] | global allocator with a reserve for small allocations |
//! | [`bell`] | wakes one thread that sleeps until there is work or a descriptor can be read |
//! | [`cgroup`] | cgroup v2: one leaf for each run of a unit |
//! | [`child_signal`] | rings a bell when a child has ended |
//! | [`disposition`] | resets the signal dispositions of this process |
//! | [`mod@entry_point`] | the macro [`entry_point!`]: a `main` without Rust's start-up code |
//! | [`file_version`] | tells whether a file that was read is still the same |
//! | [`impersonation`] | lets one thread access files with the rights of another user |
//! | `kernel_file` | reads files of /proc and of cgroups with few system calls |
//! | [`loopback`] | brings the loopback interface up |
//! | [`machine`] | memory, CPUs and tasks that the machine has |
//! | [`mountinfo`] | reads the mounts of this namespace |
//! | `pending_sigkill` | whether a process has a SIGKILL pending |
//! | [`pidfd`] | descriptors that refer to a process |
//! | [`pipe`] | state and owner of a pipe |
//! | [`poll`] | waits for descriptors and for other threads |
//! | [`process_tree`] | finds the processes of a run in /proc |
//! | [`procfs`] | reads processes from /proc |
//! | [`pty`] | opens and resizes pseudo-terminals |
//! | [`random`] | random bytes from the kernel |
//! | [`regular_file`] | reads a whole file of limited size that must be a regular one |
//! | [`resource_limits`] | raises the resource limits of this process, restores them in children |
//! | [`self_usage`] | memory, descriptors and CPU time that this process uses |
//! | [`send_signal`] | sends signals to processes and process groups |
//! | [`sigmask`] | blocks and unblocks signals for the calling thread |
//! | [`signal_thread`] | a thread that calls a function for each signal |
//! | [`socket_holders`] | finds the processes that have a socket open |
//! | [`spawn`] | starts a program in a child process |
//! | [`task_limits`] | limits on the number of processes and threads |
//! | [`tcp`] | what the kernel knows about the peer of a TCP connection |
//! | [`tcp_listeners`] | lists the listening TCP sockets |
//! | [`thread`] | starts named threads that report their panics; tells which threads hang |
//! | [`tree_walk`] | finds the processes of a few trees without reading all of /proc |
//! | [`usage`] | what processes use of the machine |
//! | [`user_namespace`] | what the user namespace allows and isolates |
//! | [`wait`] | waits for children and reaps them |
//! | [`xattr`] | extended attributes of an open file |

pub mod allocator;
pub mod bell;
mod capabilities;
pub mod cgroup;
pub mod child_signal;
pub mod disposition;
pub mod entry_point;
pub mod file_version;
pub mod impersonation;
mod kernel_file;
pub mod loopback;
pub mod machine;
pub mod mountinfo;
mod pending_sigkill;
pub mod pidfd;
pub mod pipe;
pub mod poll;
pub mod process_tree;
pub mod procfs;
pub mod pty;
pub mod random;
pub mod regular_file;
pub mod resource_limits;
pub mod self_usage;
pub mod send_signal;
pub mod sigmask;
pub mod signal_thread;
pub mod socket_holders;
pub mod spawn;
pub mod task_limits;
pub mod tcp;
pub mod tcp_listeners;
#[cfg(test)]
mod testing;
pub mod thread;
pub mod tree_walk;
pub mod usage;
pub mod user_namespace;
pub mod wait;
pub mod xattr;

/// A process id, as the kernel counts them. That of a process is above 0.
pub type Pid = i32;
