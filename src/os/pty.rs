//! Pseudo-terminals (pty(7)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::unistd::{Uid, fchown};

use crate::window::Window;

/// The most that a terminal holds for its master to read, with room to spare: what was written before the leader was
/// reaped is among as many bytes. The kernel has two buffers for it, of 4 and 8 KiB.
pub const HELD: usize = 64 << 10;

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Pty {
    /// Ours, which does not block.
    pub master: OwnedFd,
    /// The child's.
    pub slave: OwnedFd,
}

/// Opens a terminal that belongs to `uid`, as a login would give it. It is nobody's controlling terminal.
///
/// # Errors
/// When there is no /dev/ptmx, or no terminal or descriptor left.
pub fn open(window: Window, uid: u32) -> io::Result<Pty> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let master: File = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/ptmx")?;
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, and `unlocked` is valid for that.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // Needs no path, so a /dev/pts that is another one's does not matter.
    // SAFETY: no memory involved.
    let slave = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just opened it for us.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    resize(&master, window)?;
    // Without the privilege it stays ours; only who opens it by its path would notice.
    if let Err(errno) = fchown(&slave, Some(Uid::from_raw(uid)), None) {
        log::debug!("a terminal stays the daemon's: {errno}");
    }
    Ok(Pty { master: master.into(), slave })
}

/// Gives up the controlling terminal, if there is one, so that a child's session can have it (ioctl_tty(2)). Its
/// foreground processes get a SIGHUP if we lead its session.
pub fn give_up_controlling() {
    // SAFETY: no memory involved. It fails where stdin is not our controlling terminal, and nothing is to be done then.
    unsafe { libc::ioctl(0, libc::TIOCNOTTY, 0) };
}

/// Sets the size of the window; the kernel sends SIGWINCH where it changes.
///
/// # Errors
/// What `ioctl(2)` says.
pub fn resize(master: &impl AsFd, window: Window) -> io::Result<()> {
    let size = libc::winsize { ws_row: window.rows, ws_col: window.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, and `size` is valid for that.
    Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{isatty, read, write};

    #[test]
    fn a_terminal_echoes_and_ends() {
        let pty = open(Window::default(), nix::unistd::getuid().as_raw()).unwrap();
        assert!(isatty(&pty.slave).unwrap());
        let mut buffer = [0; 16];
        assert_eq!(read(&pty.master, &mut buffer), Err(Errno::EAGAIN));
        write(&pty.master, b"x\n").unwrap();
        let count = read(&pty.slave, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"x\n");
        let count = read(&pty.master, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"x\r\n", "its echo");
        drop(pty.slave);
        assert_eq!(read(&pty.master, &mut buffer), Err(Errno::EIO));
    }

    #[test]
    fn what_was_written_is_there_before_it_would_block() {
        let pty = open(Window::default(), nix::unistd::getuid().as_raw()).unwrap();
        nix::fcntl::fcntl(&pty.slave, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let (mut written, mut seen, mut buffer) = (0, 0, [0; 8192]);
        while let Ok(count) = write(&pty.slave, &[b'x'; 1000]) {
            written += count;
        }
        assert!(written > 0 && written < HELD, "{written}");
        while let Ok(count) = read(&pty.master, &mut buffer) {
            seen += count;
        }
        assert_eq!(seen, written);
    }
}
