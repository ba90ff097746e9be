//! Where the API is and which token it gets: from the command line, else the environment, else the `init.conf` of the
//! daemon, else the files of the daemon's run directory.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::geteuid;
use tl_os::regular_file;

use super::error::{Error, sentence};
use super::parse::Line;
use crate::files::{MAX_LENGTH, read_conf};
use crate::options::{OPTIONS, variable};

/// The port of the API, if nothing says otherwise.
const PORT: u16 = 9501;

/// Where the API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) address: SocketAddr,
    /// The host and the port, for the header `Host` and for messages.
    pub(crate) host: &'static str,
    /// What precedes `/api/v1` in each path: empty, or a path without a `/` at its end.
    pub(crate) prefix: &'static str,
}

/// Where the API is, and the token for it.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) url: Url,
    /// The token; none if there is no token file, as with a daemon that needs none.
    pub(crate) token: Option<&'static str>,
    /// The token file, for messages; none if no default applies to the address.
    pub(crate) token_file: Option<&'static Path>,
}

impl Settings {
    /// Reads the settings.
    ///
    /// # Errors
    /// A sentence about the option or the file that cannot be used.
    pub(crate) fn read(line: &Line) -> Result<Settings, Error> {
        let lookup = Lookup::new(line);
        let run_dir = Path::new(lookup.find("run-dir").unwrap_or_else(|| default_of("run-dir")));
        let given = lookup.given("url");
        let address_file = run_dir.join("address");
        let (url, owner) = match given {
            Some(text) => (
                parse_url(text).map_err(|why| {
                    let source = if line.has("url") { "--url" } else { &variable("url") };
                    Error::usage(format_args!("{source}: {text:?}: {why}"))
                })?,
                None,
            ),
            None => local_url(&address_file)?,
        };
        let default: &Path = Box::leak(run_dir.join("token").into_boxed_path());
        let token_file = match lookup.given("token-file") {
            Some(file) => Some(Path::new(file)),
            // The token of this host's daemon is not sent to another host.
            None if given.is_some() && !url.address.ip().is_loopback() => None,
            None => Some(lookup.find("token-file").map_or(default, Path::new)),
        };
        // Without authentication there is no such file.
        let token = match token_file {
            Some(file) => read_token(file, file == default)?,
            None => None,
        };
        if let (Some(owner), Some((_, owner_of_token))) = (owner, token) {
            check_owner(&address_file, owner, owner_of_token)?;
        }
        let token = token.map(|(token, _)| token);
        Ok(Settings { url, token, token_file })
    }
}

/// Looks values of options up.
struct Lookup<'a> {
    line: &'a Line,
    /// The lines of `init.conf`, never freed.
    conf: &'static [(String, String)],
}

impl Lookup<'_> {
    fn new(line: &Line) -> Lookup<'_> {
        let dir = from_environment("config-dir").unwrap_or_else(|| default_of("config-dir"));
        // A file that is not there or that cannot be read sets nothing.
        let (conf, _) = read_conf(&Path::new(dir).join("init.conf"));
        Lookup { line, conf: conf.leak() }
    }

    /// The value of an option on the command line or in the environment.
    fn given(&self, option: &str) -> Option<&'static str> {
        self.line.value(option).or_else(|| from_environment(option))
    }

    /// The value of an option on the command line, in the environment or in `init.conf`.
    fn find(&self, option: &str) -> Option<&'static str> {
        let name = variable(option);
        let in_conf = self.conf.iter().find(|(key, value)| *key == name && !value.is_empty());
        self.given(option).or(in_conf.map(|(_, value)| value.as_str()))
    }
}

/// The value of an option in the environment.
fn from_environment(option: &str) -> Option<&'static str> {
    let value = std::env::var(variable(option)).ok()?;
    (!value.is_empty()).then(|| &*value.leak())
}

/// The default of an option of the daemon.
fn default_of(option: &str) -> &'static str {
    OPTIONS.iter().find(|known| known.name == option).map_or("", |known| known.default)
}

/// The address in the daemon's file `address`, and the owner of the file; without the file, the default port of this
/// host.
fn local_url(file: &Path) -> Result<(Url, Option<u32>), Error> {
    let (address, owner) = match read_own(file) {
        Ok((text, owner)) => {
            let address = text.trim().parse();
            (address.map_err(|_| Error::local(format_args!("{}: it has no address", file.display())))?, Some(owner))
        }
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(Error::local(format_args!("{}: it is a symlink", file.display())));
        }
        Err(_) => (SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), None),
    };
    let address = reachable(address);
    Ok((Url { address, host: address.to_string().leak(), prefix: "" }, owner))
}

/// Reads a file that is no symlink. Returns its text and its owner.
fn read_own(file: &Path) -> io::Result<(String, u32)> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(file)?;
    let mut text = String::new();
    (&mut file).take(MAX_LENGTH).read_to_string(&mut text)?;
    Ok((text, file.metadata()?.uid()))
}

/// Checks that the user who has written the file with the address may know the token, which is sent there: it is root,
/// this user, or the owner of the token. Another user could have replaced the run directory.
fn check_owner(file: &Path, owner: u32, owner_of_token: u32) -> Result<(), Error> {
    if [0, geteuid().as_raw(), owner_of_token].contains(&owner) {
        return Ok(());
    }
    let file = file.display();
    Err(Error::local(format_args!("{file}: it belongs to the user {owner}, who may not get the token; give --url")))
}

/// An address to connect to: the loopback interface in place of "all addresses".
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Parses a URL: `http://HOST[:PORT][/PATH]`.
fn parse_url(text: &'static str) -> Result<Url, &'static str> {
    let Some(rest) = text.strip_prefix("http://") else {
        return Err("it must begin with http://; TLS is not supported");
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if rest.contains(['?', '#', '@']) || !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it must be of the form http://HOST:PORT/PATH, without user, query and fragment");
    }
    // A colon of an IPv6 address is inside of brackets.
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => {
            let port = port.parse().ok().filter(|port| *port > 0);
            (name, port.ok_or("the port must be a number from 1 to 65535")?)
        }
        _ => (host, 80),
    };
    let ip = match name.strip_prefix('[') {
        Some(inner) => {
            let ip = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
            ip.ok_or("an IPv6 address must be in brackets: http://[::1]:9501")?.into()
        }
        None => resolve(name, &fs::read_to_string("/etc/hosts").unwrap_or_default())?,
    };
    let address = reachable(SocketAddr::new(ip, port));
    let path = path.trim_end_matches('/');
    // The base URL of the API, which ends in `/api/v1`, is accepted too.
    Ok(Url { address, host, prefix: path.strip_suffix("/api/v1").unwrap_or(path) })
}

/// The address of a host: an IPv4 address, `localhost`, or a name of /etc/hosts. This program is static and has no
/// resolver for other names.
fn resolve(name: &str, hosts: &str) -> Result<IpAddr, &'static str> {
    if let Ok(ip) = name.parse::<Ipv4Addr>() {
        return Ok(ip.into());
    }
    let lines = hosts.lines().filter_map(|line| line.split('#').next());
    let found = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let ip = words.next()?.parse::<IpAddr>().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(ip)
    });
    match found.min_by_key(|ip| !ip.is_ipv4()) {
        Some(ip) => Ok(ip),
        None if name.eq_ignore_ascii_case("localhost") => Ok(Ipv4Addr::LOCALHOST.into()),
        None => Err(sentence(format_args!(
            "{name:?} is neither an IP address nor a name in /etc/hosts; `getent hosts {name}` may print its address"
        ))),
    }
}

/// Reads the token. Returns it with the owner of what was read.
fn read_token(file: &Path, may_be_absent: bool) -> Result<Option<(&'static str, u32)>, Error> {
    let shown = file.display();
    let read = fs::File::open(file).and_then(|open| Ok((open.metadata()?.uid(), open)));
    let read = read.map_err(regular_file::ReadError::from);
    let read = read.and_then(|(owner, open)| Ok((owner, regular_file::read_open(open, MAX_LENGTH)?)));
    let (owner, bytes) = match read {
        Ok(read) => read,
        Err(error) if may_be_absent && error.is_not_found() => return Ok(None),
        Err(_) if matches!(fs::File::open(file), Err(error) if error.kind() == ErrorKind::PermissionDenied) => {
            let advice = "run tlctl as root or as the user of the daemon, or name another file with --token-file";
            return Err(Error::local(format_args!("you may not read the token file {shown}; {advice}")));
        }
        Err(error) => return Err(Error::local(format_args!("the token file {shown}: {error}"))),
    };
    let token = bytes.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(Error::local(format_args!(
            "the token file {shown} must contain printable ASCII characters and no spaces"
        )));
    }
    Ok(std::str::from_utf8(token).ok().map(|text| (&*text.to_owned().leak(), owner)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_a_port_and_a_prefix() {
        for (text, address, host, prefix) in [
            ("http://127.0.0.1:9501", "127.0.0.1:9501", "127.0.0.1:9501", ""),
            ("http://10.0.2.15", "10.0.2.15:80", "10.0.2.15", ""),
            ("http://[fd00::1]:9501/", "[fd00::1]:9501", "[fd00::1]:9501", ""),
            ("http://[::1]", "[::1]:80", "[::1]", ""),
            ("http://10.0.2.15:9501/a/api/v1/", "10.0.2.15:9501", "10.0.2.15:9501", "/a"),
            ("http://0.0.0.0:9501/a/b/", "127.0.0.1:9501", "0.0.0.0:9501", "/a/b"),
        ] {
            let url = parse_url(text).unwrap();
            assert_eq!((url.address.to_string().as_str(), url.host, url.prefix), (address, host, prefix));
        }
        assert!(parse_url("http://localhost:1").unwrap().address.ip().is_loopback());
        for (text, part) in [
            ("127.0.0.1:9501", "http://"),
            ("https://127.0.0.1", "TLS"),
            ("http://", "\"\" is neither an IP address"),
            ("http://127.0.0.1:", "port"),
            ("http://127.0.0.1:0", "port"),
            ("http://127.0.0.1:65536", "port"),
            ("http://[::1", "IPv6"),
            ("http://[x]:1", "IPv6"),
            ("http://user@127.0.0.1", "without user"),
            ("http://127.0.0.1/?x", "query"),
            ("http://127.0.0.1/ x", "form"),
            ("http://no.such.host.invalid:1", "/etc/hosts"),
        ] {
            assert!(parse_url(text).unwrap_err().contains(part), "{text}: {:?}", parse_url(text));
        }
    }

    #[test]
    fn names_are_looked_up_in_the_hosts_file() {
        let hosts = "# comment\n::1 six both\n10.0.0.7\tfour Both # tail\nbroken\n";
        let find = |name: &str| resolve(name, hosts).map(|ip| ip.to_string());
        assert_eq!(find("six"), Ok("::1".to_owned()));
        assert_eq!(find("FOUR"), Ok("10.0.0.7".to_owned()));
        assert_eq!(find("both"), Ok("10.0.0.7".to_owned()), "IPv4 first");
        assert_eq!(find("localhost"), Ok("127.0.0.1".to_owned()));
        assert!(find("tail").is_err());
    }
}
