//! Starts a container as a sandbox is started. If the engine refuses, finds settings with which it does not: the runtime,
//! and resource limits that it may set.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use tl_os::random;

use super::engine::Found;
use super::finding::Finding;
use super::left;
use crate::engine::{ContainerSpec, ContainerState, Engine, EngineError};
use crate::program::config::Config;
use crate::sandbox::health;

const SUBJECT: &str = "container";

/// How long the tl-init of the container may take to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// From one question to the next.
const PAUSE: Duration = Duration::from_millis(20);

/// The most descriptors of a process in a container, if the present limit is higher.
const MOST: u64 = 1_048_576;

/// Settings of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attempt {
    runtime: Option<String>,
    ulimits: Vec<(String, u64, u64)>,
}

pub(super) fn container(config: &Config, found: &Found, init: &Path) -> Finding {
    let given = Attempt { runtime: config.runtime.clone(), ulimits: config.ulimits.clone() };
    let begin = Instant::now();
    let refusal = match run(config, found, init, &given) {
        Ok(()) => return started(begin),
        Err(refusal) => refusal,
    };
    for attempt in others(&given, &own_limits(), &found.info.runtimes) {
        if run(config, found, init, &attempt).is_ok() {
            return Finding::missing(
                SUBJECT,
                format!(
                    "the engine starts one only with other settings, which the environment can give: {} (without: {})",
                    export(&attempt),
                    refusal.trim()
                ),
            );
        }
    }
    Finding::missing(SUBJECT, format!("none can be started: {refusal}"))
}

fn started(begin: Instant) -> Finding {
    Finding::ok(SUBJECT, format!("one was started, and its tl-init answered after {} ms", begin.elapsed().as_millis()))
}

/// Settings to try after those that were given.
fn others(given: &Attempt, limits: &[(String, u64, u64)], runtimes: &[String]) -> Vec<Attempt> {
    let known = ["runc", "crun"].map(str::to_owned);
    let runtimes = known.into_iter().filter(|name| runtimes.contains(name)).map(Some);
    let runtimes: Vec<Option<String>> = match &given.runtime {
        Some(runtime) => vec![Some(runtime.clone())],
        None => [None].into_iter().chain(runtimes).collect(),
    };
    let limits = if given.ulimits.is_empty() { vec![Vec::new(), limits.to_vec()] } else { vec![given.ulimits.clone()] };
    let mut attempts = Vec::new();
    for runtime in runtimes {
        for ulimits in &limits {
            let attempt = Attempt { runtime: runtime.clone(), ulimits: ulimits.clone() };
            if attempt != *given {
                attempts.push(attempt);
            }
        }
    }
    attempts
}

/// Limits that an engine which may not raise limits can set: those of this process, and for tasks the highest PID,
/// because Podman lowers its own limit to that.
fn own_limits() -> Vec<(String, u64, u64)> {
    let highest_pid = fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    [("nofile", Resource::RLIMIT_NOFILE, MOST), ("nproc", Resource::RLIMIT_NPROC, highest_pid.unwrap_or(MOST))]
        .into_iter()
        .filter_map(|(name, resource, most)| {
            let (_, hard) = getrlimit(resource).ok()?;
            (hard != RLIM_INFINITY).then(|| (name.to_owned(), hard.min(most), hard.min(most)))
        })
        .collect()
}

/// The line for a shell that gives the settings to tl-host.
fn export(attempt: &Attempt) -> String {
    let mut line = "export".to_owned();
    if let Some(runtime) = &attempt.runtime {
        line += &format!(" TL_HOST_RUNTIME={runtime}");
    }
    if !attempt.ulimits.is_empty() {
        let limits: Vec<String> =
            attempt.ulimits.iter().map(|(name, soft, hard)| format!("{name}={soft}:{hard}")).collect();
        line += &format!(" TL_HOST_ULIMIT={}", limits.join(","));
    }
    line
}

/// Starts a container and waits until its tl-init answers. Nothing is left of it.
fn run(config: &Config, found: &Found, init: &Path, attempt: &Attempt) -> Result<(), String> {
    const INIT: &str = "/usr/lib/tl-init/tl-init";
    const PORT: u16 = 9501;
    let name = format!("tl-doctor-{}", random::hex::<6>().map_err(|error| error.to_string())?);
    let spec = ContainerSpec {
        name: name.clone(),
        image: config.default_image.clone(),
        command: [INIT, "--listen", &format!("0.0.0.0:{PORT}")].map(str::to_owned).to_vec(),
        labels: labels(),
        read_only_mounts: vec![(init.to_owned(), INIT.to_owned())],
        // Where it puts the token that it makes, because it is given none.
        tmpfs: vec!["/run".to_owned()],
        published_port: found.info.is_rootless.then_some(PORT),
        ulimits: attempt.ulimits.clone(),
        runtime: attempt.runtime.clone(),
        ..ContainerSpec::default()
    };
    let result = start(&found.engine, &spec, found.info.is_rootless, PORT);
    let removed = found.engine.remove(&name);
    result?;
    removed.map_err(|error| error.to_string())
}

fn labels() -> Vec<(String, String)> {
    let owner = left::this_process().map(|owner| (left::LABEL_OWNER.to_owned(), owner));
    let (name, value) = left::LABEL;
    [(name.to_owned(), value.to_owned())].into_iter().chain(owner).collect()
}

fn start(engine: &Engine, spec: &ContainerSpec, is_rootless: bool, port: u16) -> Result<(), String> {
    let refused = |error: EngineError| error.to_string();
    let id = engine.create(spec).map_err(refused)?;
    engine.start(&id).map_err(refused)?;
    let begin = Instant::now();
    loop {
        let container = engine.inspect(&id).map_err(refused)?;
        if container.state != ContainerState::Running {
            let output = engine.logs_tail(&id, 5).map_err(refused)?;
            return Err(format!("its tl-init has ended with {}: {output}", container.exit_code.unwrap_or(-1)));
        }
        let address = if is_rootless {
            container.published_at.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        } else {
            container.address.map(|address| SocketAddr::new(address, port))
        };
        let address = address.ok_or("the engine has given it no address")?;
        match health::is_up(address) {
            Ok(()) => return Ok(()),
            Err(error) if begin.elapsed() >= LIMIT => {
                return Err(format!("its tl-init at {address} has not answered within {LIMIT:?}: {error}"));
            }
            Err(_) => sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_settings_are_tried_unless_some_were_given() {
        let limits = [("nofile".to_owned(), 10, 10)];
        let nothing = Attempt { runtime: None, ulimits: Vec::new() };
        let runtimes = ["crun", "runc", "runsc"].map(str::to_owned);
        let exports: Vec<String> = others(&nothing, &limits, &runtimes).iter().map(export).collect();
        let expected = [
            "export TL_HOST_ULIMIT=nofile=10:10",
            "export TL_HOST_RUNTIME=runc",
            "export TL_HOST_RUNTIME=runc TL_HOST_ULIMIT=nofile=10:10",
            "export TL_HOST_RUNTIME=crun",
            "export TL_HOST_RUNTIME=crun TL_HOST_ULIMIT=nofile=10:10",
        ];
        assert_eq!(exports, expected);
        let given = Attempt { runtime: Some("runsc".to_owned()), ulimits: limits.to_vec() };
        assert_eq!(others(&given, &limits, &runtimes), []);
    }
}
