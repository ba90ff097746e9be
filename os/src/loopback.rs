//! The loopback interface (netdevice(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Sets `lo` up, and says whether it was down. The kernel gives it 127.0.0.1/8 and ::1 by that.
///
/// # Errors
/// What the kernel says; in a network namespace of somebody else's that is EPERM.
pub fn up() -> io::Result<bool> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = request();
    // SAFETY: the kernel reads the name and writes the flags of the request, which is valid for both.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: the call above has written this field of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as i16;
    if flags & up != 0 {
        return Ok(false);
    }
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: the kernel reads the request, which is valid for that.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(true)
}

fn request() -> libc::ifreq {
    // SAFETY: all zeroes is a valid value of this struct of integers and pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_already_is_no_error() {
        // In here it is up, as sockets on 127.0.0.1 show.
        std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!up().unwrap());
    }
}
