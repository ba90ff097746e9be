//! Pseudo-terminals (pty(7)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid, fchown};

/// Upper bound of the bytes that a terminal buffers for its master: the next this many bytes that are read contain
/// everything that was written before. The kernel's two buffers, of 4 and 8 KiB, hold much less.
pub const MAX_BUFFERED: usize = 64 << 10;

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Number of rows.
    pub rows: u16,
    /// Number of columns.
    pub cols: u16,
}

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Pty {
    /// The end of the program that shows the terminal. Does not block.
    pub master: OwnedFd,
    /// The end of the programs that run in it.
    pub slave: OwnedFd,
}

/// The owner of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user, which may read and write it.
    pub uid: u32,
    /// The id of the group `tty`, which may write to it, as `write(1)` does. `None` lets no group write.
    pub tty: Option<u32>,
}

/// Opens a new terminal for text in UTF-8, with the owner and the mode that a login would set (login(1), sshd(8)). It
/// is not yet the controlling terminal of any session.
///
/// # Errors
/// When there is no /dev/ptmx, or the system has no terminal or descriptor left.
pub fn open(size: Size, owner: Owner) -> io::Result<Pty> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let master: File = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/ptmx")?;
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which `unlocked` is valid for.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // This needs no path: the devpts at /dev/pts may be another one.
    // SAFETY: TIOCGPTPEER takes integers.
    let slave = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just opened this descriptor, and nothing else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    resize(&master, size)?;
    let mut termios = tcgetattr(&slave)?;
    // Without this flag, erasing a character erases only its last byte.
    termios.input_flags.insert(InputFlags::IUTF8);
    tcsetattr(&slave, SetArg::TCSANOW, &termios)?;
    give(&slave, owner);
    Ok(Pty { master: master.into(), slave })
}

/// Makes `owner` the owner of a terminal. Without the privilege the owner stays the same, which matters only to
/// programs that open the terminal by its path.
fn give(slave: &OwnedFd, owner: Owner) {
    let uid = Some(Uid::from_raw(owner.uid));
    let given = fchown(slave, uid, owner.tty.map(Gid::from_raw)).and_then(|()| {
        let others = if owner.tty.is_some() { Mode::S_IWGRP } else { Mode::empty() };
        fchmod(slave, Mode::S_IRUSR | Mode::S_IWUSR | others)
    });
    // A user namespace can have the user but not the group.
    if let Err(errno) = given.or_else(|_| fchown(slave, uid, None)) {
        log::debug!("cannot change the owner of a terminal: {errno}");
    }
}

/// Detaches this process from its controlling terminal, if stdin is that, so that the session of a child can have it
/// (ioctl_tty(2)). If this process leads the terminal's session, the whole session loses it and its foreground
/// processes get SIGHUP.
pub fn give_up_controlling() {
    // It fails if stdin is not the controlling terminal: then there is nothing to detach from.
    // SAFETY: TIOCNOTTY takes an integer.
    unsafe { libc::ioctl(0, libc::TIOCNOTTY, 0) };
}

/// Sets the size of a terminal. If that changes it, the kernel sends SIGWINCH to the foreground process group.
///
/// # Errors
/// What `ioctl(2)` says.
pub fn resize(master: &impl AsFd, size: Size) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which `size` is valid for.
    Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// The size of a terminal; 0 where it is not known.
///
/// # Errors
/// ENOTTY if it is not a terminal.
pub fn size(terminal: &impl AsFd) -> io::Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is valid for.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(Size { rows: size.ws_row, cols: size.ws_col })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;
    use nix::unistd::{getuid, isatty, read, write};

    use crate::testing::wait_until;

    fn open_pty() -> Pty {
        open(Size { rows: 24, cols: 80 }, Owner { uid: getuid().as_raw(), tty: None }).unwrap()
    }

    #[test]
    fn erase_removes_a_whole_utf8_character() {
        let pty = open_pty();
        write(&pty.master, "a\u{fc}\x7fb\n".as_bytes()).unwrap();
        let mut buffer = [0; 16];
        let count = read(&pty.slave, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"ab\n");
    }

    #[test]
    fn the_group_tty_may_write_if_there_is_one() {
        let mode = |tty| {
            let pty = open(Size { rows: 24, cols: 80 }, Owner { uid: getuid().as_raw(), tty }).unwrap();
            let stat = fstat(&pty.slave).unwrap();
            (stat.st_gid, stat.st_mode & 0o777)
        };
        assert_eq!(mode(None).1, 0o600);
        if getuid().is_root() {
            assert_eq!(mode(Some(5)), (5, 0o620));
        }
    }

    #[test]
    fn the_size_is_that_of_the_last_resize() {
        let pty = open_pty();
        assert_eq!(size(&pty.slave).unwrap(), Size { rows: 24, cols: 80 });
        resize(&pty.master, Size { rows: 3, cols: 40 }).unwrap();
        assert_eq!(size(&pty.slave).unwrap(), Size { rows: 3, cols: 40 });
        let file = File::open("/dev/null").unwrap();
        assert_eq!(size(&file).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn a_terminal_echoes_and_reports_the_close_of_its_slave() {
        let pty = open_pty();
        assert!(isatty(&pty.slave).unwrap());
        let mut buffer = [0; 16];
        assert_eq!(read(&pty.master, &mut buffer), Err(Errno::EAGAIN));
        write(&pty.master, b"x\n").unwrap();
        let count = read(&pty.slave, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"x\n");
        // A thread of the kernel passes on what was written.
        let mut echo = Vec::new();
        wait_until("the echo is complete", || {
            let count = read(&pty.master, &mut buffer).unwrap_or(0);
            echo.extend_from_slice(&buffer[..count]);
            echo.len() >= 3
        });
        assert_eq!(echo, b"x\r\n");
        drop(pty.slave);
        // A child that another test has just forked still has the slave open.
        let mut end = Err(Errno::EAGAIN);
        wait_until("the close is reported", || {
            end = read(&pty.master, &mut buffer);
            end != Err(Errno::EAGAIN)
        });
        assert_eq!(end, Err(Errno::EIO));
    }

    #[test]
    fn a_terminal_buffers_less_than_the_bound() {
        let pty = open_pty();
        nix::fcntl::fcntl(&pty.slave, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let (mut written, mut seen, mut buffer) = (0, 0, [0; 8192]);
        while let Ok(count) = write(&pty.slave, &[b'x'; 1000]) {
            written += count;
        }
        assert!(written > 0 && written < MAX_BUFFERED, "{written}");
        // A thread of the kernel passes on what was written.
        wait_until("everything is read", || {
            seen += read(&pty.master, &mut buffer).unwrap_or(0);
            seen >= written
        });
        assert_eq!((seen, read(&pty.master, &mut buffer)), (written, Err(Errno::EAGAIN)));
    }
}
