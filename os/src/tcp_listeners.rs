//! The listening TCP sockets of this network namespace.
//!
//! The kernel lists them through netlink (sock_diag(7)), without the sockets that are connected. Where that is refused,
//! they are read from `/proc/net/tcp` and `/proc/net/tcp6`, which list every socket.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::kernel_file;

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// The address that it is bound to: `0.0.0.0` or `::` for all addresses.
    pub address: IpAddr,
    /// The inode number of the socket, by which [`holders`](crate::socket_holders::holders) finds the processes that
    /// have it open. The kernel does not reuse the number while the socket is open.
    pub inode: u64,
}

/// `TCP_LISTEN` of the kernel's include/net/tcp_states.h.
const LISTEN: u8 = 10;
/// `SOCK_DIAG_BY_FAMILY` of include/uapi/linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Length of a `nlmsghdr` (netlink(7)).
const HEADER: usize = 16;
/// Length of an `inet_diag_req_v2` (sock_diag(7)).
const REQUEST: usize = 56;
/// How often a list is read again that the kernel could not take at one time.
const MAX_TRIES: usize = 4;
/// Longest wait for a part of the list. The kernel answers at once.
const TIMEOUT: TimeVal = TimeVal::new(1, 0);

/// Lists the listening TCP sockets, IPv4 and IPv6, in no particular order.
///
/// # Errors
/// If the kernel lists them neither through netlink nor in /proc, or for lack of descriptors or memory.
pub fn listeners() -> io::Result<Vec<Listener>> {
    by_netlink().or_else(|error| {
        from_proc().inspect_err(|_| log::debug!("listening sockets cannot be listed through netlink: {error}"))
    })
}

fn by_netlink() -> io::Result<Vec<Listener>> {
    let kernel =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&kernel, sockopt::ReceiveTimeout, &TIMEOUT)?;
    let mut buffer = vec![0; 32 << 10];
    let mut found = Vec::new();
    for (sequence, family) in [libc::AF_INET as u8, libc::AF_INET6 as u8].into_iter().enumerate() {
        let before = found.len();
        for tries in 1.. {
            let sequence = (sequence * MAX_TRIES + tries) as u32;
            sendto(kernel.as_raw_fd(), &request(family, sequence), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
            found.truncate(before);
            let mut is_whole = true;
            loop {
                let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
                let part = read_messages(buffer.get(..length).unwrap_or_default(), sequence, &mut found)?;
                is_whole &= !part.is_interrupted;
                if part.is_last {
                    break;
                }
            }
            if is_whole || tries >= MAX_TRIES {
                break;
            }
        }
    }
    Ok(found)
}

/// The request for all listening sockets of an address family: a `nlmsghdr` and an `inet_diag_req_v2`.
fn request(family: u8, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend((1_u32 << LISTEN).to_ne_bytes());
    // The id of a socket, which does not count in a dump.
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

/// What a datagram of the kernel says about the list that it is a part of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    /// No other follows.
    is_last: bool,
    /// Sockets were opened or closed meanwhile, and some may be missing.
    is_interrupted: bool,
}

/// Adds the listening sockets in a datagram of netlink messages. Messages with another sequence number are of an earlier
/// request, and do not count.
fn read_messages(mut bytes: &[u8], sequence: u32, found: &mut Vec<Listener>) -> io::Result<Part> {
    let mut part = Part::default();
    while !bytes.is_empty() {
        let header = (u32_at(bytes, 0), u16_at(bytes, 4), u16_at(bytes, 6), u32_at(bytes, 8));
        let (Some(length), Some(kind), Some(flags), Some(number)) = header else { return Err(malformed()) };
        let length = length as usize;
        let payload = bytes.get(HEADER..length).ok_or_else(malformed)?;
        if number == sequence {
            part.is_interrupted |= flags & libc::NLM_F_DUMP_INTR as u16 != 0;
            match kind {
                SOCK_DIAG_BY_FAMILY => found.extend(read_socket(payload)),
                // The last message says why the list ends early: with ENOENT before the first socket if the kernel has no
                // tcp_diag.
                _ if kind == libc::NLMSG_DONE as u16 => match u32_at(payload, 0).map_or(0, |errno| errno as i32) {
                    0.. => part.is_last = true,
                    errno => return Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                },
                _ if kind == libc::NLMSG_ERROR as u16 => {
                    let errno = u32_at(payload, 0).ok_or_else(malformed)? as i32;
                    return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
                }
                _ => {}
            }
        }
        // Each message is padded to a multiple of four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(part)
}

/// Reads an `inet_diag_msg` (sock_diag(7)). None if it is no listening socket.
fn read_socket(message: &[u8]) -> Option<Listener> {
    let (family, state) = (*message.first()?, *message.get(1)?);
    if state != LISTEN {
        return None;
    }
    let port = u16::from_be_bytes(message.get(4..6)?.try_into().ok()?);
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(message.get(8..12)?).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(message.get(8..24)?).ok()?)),
        _ => return None,
    };
    Some(Listener { port, address, inode: u64::from(u32_at(message, 68)?) })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn malformed() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "a netlink message is malformed")
}

fn from_proc() -> io::Result<Vec<Listener>> {
    let mut found = read_table(&kernel_file::read("/proc/net/tcp")?);
    match kernel_file::read("/proc/net/tcp6") {
        Ok(table) => found.extend(read_table(&table)),
        // The kernel has no IPv6.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(found)
}

/// The listening sockets in a table of /proc/net (proc_pid_net(5)). Lines that cannot be read are left out.
fn read_table(table: &[u8]) -> Vec<Listener> {
    table.split(|byte| *byte == b'\n').filter_map(read_line).collect()
}

fn read_line(line: &[u8]) -> Option<Listener> {
    let mut fields = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (local, state) = (fields.nth(1)?, fields.nth(1)?);
    if u8::from_str_radix(state, 16).ok()? != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Listener { port: u16::from_str_radix(port, 16).ok()?, address: read_address(address)?, inode })
}

/// An address as the kernel prints it: each word of four bytes as a number in the byte order of the machine.
fn read_address(hex: &str) -> Option<IpAddr> {
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let word = |at: usize| u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            Some(IpAddr::from(<[u8; 16]>::try_from(words.concat()).ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use nix::sys::stat::fstat;

    use super::*;

    /// An `inet_diag_msg`.
    fn message(family: i32, state: u8, port: u16, address: &[u8], inode: u32) -> Vec<u8> {
        let mut bytes = vec![family as u8, state, 0, 0];
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(address);
        bytes.resize(68, 0);
        bytes.extend(inode.to_ne_bytes());
        bytes
    }

    fn netlink(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn listener(port: u16, address: &str, inode: u64) -> Listener {
        Listener { port, address: address.parse().unwrap(), inode }
    }

    const DONE: u16 = libc::NLMSG_DONE as u16;

    #[test]
    fn messages_of_the_kernel_are_read_to_the_last_one() {
        let v4 = message(libc::AF_INET, LISTEN, 8080, &[127, 0, 0, 1], 7);
        let v6 = message(libc::AF_INET6, LISTEN, 80, &[0; 16], u32::MAX);
        let datagram = [
            netlink(SOCK_DIAG_BY_FAMILY, 2, 5, &v4),
            netlink(SOCK_DIAG_BY_FAMILY, 2, 4, &v4), // of an earlier request
            netlink(SOCK_DIAG_BY_FAMILY, 2, 5, &message(libc::AF_INET, 1, 9, &[1; 4], 8)), // connected
            netlink(SOCK_DIAG_BY_FAMILY, 2, 5, &message(libc::AF_UNIX, LISTEN, 9, &[1; 4], 8)),
            netlink(99, 2, 5, b"abc"), // its length is no multiple of four
            netlink(SOCK_DIAG_BY_FAMILY, 2 | libc::NLM_F_DUMP_INTR as u16, 5, &v6),
        ];
        let mut found = Vec::new();
        let part = read_messages(&datagram.concat(), 5, &mut found).unwrap();
        assert_eq!(found, [listener(8080, "127.0.0.1", 7), listener(80, "::", u64::from(u32::MAX))]);
        assert_eq!(part, Part { is_last: false, is_interrupted: true });
        let part = read_messages(&netlink(DONE, 2, 5, &[0; 4]), 5, &mut found).unwrap();
        assert_eq!(part, Part { is_last: true, is_interrupted: false });
        let error = netlink(libc::NLMSG_ERROR as u16, 0, 5, &(-libc::ENOENT).to_ne_bytes());
        assert_eq!(read_messages(&error, 5, &mut found).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_list_that_the_kernel_has_ended_early_is_an_error() {
        let list = |errno: i32| read_messages(&netlink(DONE, 2, 5, &errno.to_ne_bytes()), 5, &mut Vec::new());
        assert_eq!(list(-libc::ENOENT).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(list(i32::MIN).is_err());
        assert!(list(0).unwrap().is_last);
        assert!(read_messages(&netlink(DONE, 2, 5, &[]), 5, &mut Vec::new()).unwrap().is_last);
    }

    #[test]
    fn malformed_messages_are_errors_or_left_out_wherever_they_end() {
        let v4 = netlink(SOCK_DIAG_BY_FAMILY, 2, 5, &message(libc::AF_INET, LISTEN, 8080, &[127, 0, 0, 1], 7));
        for end in 1..v4.len() {
            assert!(read_messages(&v4[..end], 5, &mut Vec::new()).is_err(), "the first {end} bytes");
        }
        for length in [0, 1, HEADER as u32 - 1, v4.len() as u32 + 1, u32::MAX, u32::MAX - 2] {
            let broken = [&length.to_ne_bytes(), &v4[4..]].concat();
            assert!(read_messages(&broken, 5, &mut Vec::new()).is_err(), "a length of {length}");
        }
        // The header is right, and the message is too short.
        for length in 0..72 {
            let short = message(libc::AF_INET, LISTEN, 8080, &[127, 0, 0, 1], 7)[..length].to_vec();
            let mut found = Vec::new();
            read_messages(&netlink(SOCK_DIAG_BY_FAMILY, 2, 5, &short), 5, &mut found).unwrap();
            assert_eq!(found, [], "{length} bytes");
        }
        assert!(read_messages(&netlink(libc::NLMSG_ERROR as u16, 0, 5, &[1]), 5, &mut Vec::new()).is_err());
        let smallest = netlink(libc::NLMSG_ERROR as u16, 0, 5, &i32::MIN.to_ne_bytes());
        assert!(read_messages(&smallest, 5, &mut Vec::new()).is_err());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_proc_are_read_and_broken_ones_left_out() {
        let rest = "00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0";
        let table = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:1F90 00000000:0000 0A {rest}\n   \
             1: 0100007F:1F91 0100007F:0001 01 {rest}\n  \
             12: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A {rest}\n"
        );
        assert_eq!(read_table(table.as_bytes()), [listener(8080, "127.0.0.1", 4711), listener(80, "::1", 4711)]);
        for broken in [
            "",
            "0:",
            "0: 0100007F:1F90",
            "0: 0100007F:1F90 00000000:0000 0A",
            "0: 0100007F:1F90 00000000:0000 0A 0 0 0 0 0",
            "0: 0100007F:1F90 00000000:0000 0A 0 0 0 0 0 x",
            "0: 0100007F:1F90 00000000:0000 0A 0 0 0 0 0 -1",
            "0: 0100007F 00000000:0000 0A 0 0 0 0 0 1",
            "0: 0100007F:11F90 00000000:0000 0A 0 0 0 0 0 1",
            "0: 0100007F: 00000000:0000 0A 0 0 0 0 0 1",
            "0: 0100007:1F90 00000000:0000 0A 0 0 0 0 0 1",
            "0: +100007F:1F90 00000000:0000 0A 0 0 0 0 0 1",
            "0: äääää:1F90 00000000:0000 0A 0 0 0 0 0 1",
            "0: 0100007F0100007F:1F90 00000000:0000 0A 0 0 0 0 0 1",
            "0: 0100007F:1F90 00000000:0000 10A 0 0 0 0 0 1",
        ] {
            assert_eq!(read_table(broken.as_bytes()), [], "{broken}");
        }
        assert_eq!(read_table(b"0: \xff:1F90 00000000:0000 0A 0 0 0 0 0 1"), []);
    }

    #[test]
    fn both_ways_list_the_same_sockets_of_this_process() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").ok();
        let (v4, v6) = (&v4, v6.as_ref());
        let own: Vec<Listener> = [Some(v4), v6]
            .into_iter()
            .flatten()
            .map(|socket| {
                let (address, inode) = (socket.local_addr().unwrap(), fstat(socket.as_fd()).unwrap().st_ino);
                Listener { port: address.port(), address: address.ip(), inode }
            })
            .collect();
        let holds_all = |all: Vec<Listener>| own.iter().all(|listener| all.contains(listener));
        assert!(holds_all(listeners().unwrap()));
        assert!(holds_all(from_proc().unwrap()));
        match by_netlink() {
            Ok(all) => assert!(holds_all(all)),
            Err(error) => eprintln!("netlink is refused here: {error}"),
        }
    }
}
