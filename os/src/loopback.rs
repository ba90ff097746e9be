//! The loopback interface (netdevice(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Brings the interface `lo` up, on which the kernel gives it the addresses 127.0.0.1/8 and ::1. Returns whether it was
/// down.
///
/// # Errors
/// What the kernel says: EPERM without CAP_NET_ADMIN over this network namespace.
pub fn up() -> io::Result<bool> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = request();
    // SAFETY: SIOCGIFFLAGS reads the name of the request and writes its flags, and `request` is valid for both.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: the ioctl has written this field of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as i16;
    if flags & up != 0 {
        return Ok(false);
    }
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: SIOCSIFFLAGS reads the request, which is valid for that.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(true)
}

/// A request about the interface `lo`.
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
    fn an_interface_that_is_up_is_not_an_error() {
        // Sockets on 127.0.0.1 work here, so the interface is up.
        std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!up().unwrap());
    }
}
