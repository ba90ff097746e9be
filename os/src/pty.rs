//! Pseudo-terminals (pty(7)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid, fchown};

/// The most that a terminal holds for its master to read, with room to spare: what was written before the leader was
/// reaped is among as many bytes. The kernel has two buffers for it, of 4 and 8 KiB.
pub const HELD: usize = 64 << 10;

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Pty {
    /// Ours, which does not block.
    pub master: OwnedFd,
    /// The child's.
    pub slave: OwnedFd,
}

/// Whose a terminal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Who may read and write it.
    pub uid: u32,
    /// The group that may write to it, as `write(1)` does: `tty`. Without one, nobody else may.
    pub tty: Option<u32>,
}

/// Opens a terminal, as a login would give it to its owner (login(1), sshd(8)), for text in UTF-8. It is nobody's
/// controlling terminal.
///
/// # Errors
/// When there is no /dev/ptmx, or no terminal or descriptor left.
pub fn open(size: Size, owner: Owner) -> io::Result<Pty> {
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
    resize(&master, size)?;
    let mut termios = tcgetattr(&slave)?;
    // Else the kernel erases a byte where the user erases a character.
    termios.input_flags.insert(InputFlags::IUTF8);
    tcsetattr(&slave, SetArg::TCSANOW, &termios)?;
    give(&slave, owner);
    Ok(Pty { master: master.into(), slave })
}

/// Without the privilege a terminal stays ours: only a program that opens it by its path is affected.
fn give(slave: &OwnedFd, owner: Owner) {
    let uid = Some(Uid::from_raw(owner.uid));
    let given = fchown(slave, uid, owner.tty.map(Gid::from_raw)).and_then(|()| {
        let others = if owner.tty.is_some() { Mode::S_IWGRP } else { Mode::empty() };
        fchmod(slave, Mode::S_IRUSR | Mode::S_IWUSR | others)
    });
    // A user namespace may have the user and not the group.
    if let Err(errno) = given.or_else(|_| fchown(slave, uid, None)) {
        log::debug!("a terminal stays the daemon's: {errno}");
    }
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
pub fn resize(master: &impl AsFd, size: Size) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, and `size` is valid for that.
    Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;
    use nix::unistd::{getuid, isatty, read, write};

    fn ours() -> Pty {
        open(Size { rows: 24, cols: 80 }, Owner { uid: getuid().as_raw(), tty: None }).unwrap()
    }

    #[test]
    fn erase_takes_a_whole_character() {
        let pty = ours();
        write(&pty.master, "a\u{fc}\x7fb\n".as_bytes()).unwrap();
        let mut buffer = [0; 16];
        let count = read(&pty.slave, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"ab\n");
    }

    #[test]
    fn its_group_may_write_where_there_is_one() {
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
    fn a_terminal_echoes_and_ends() {
        let pty = ours();
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
        let pty = ours();
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
