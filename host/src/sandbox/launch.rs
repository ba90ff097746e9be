//! Makes a container from an image and waits until its tl-init answers.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::engine::{Container, ContainerSpec, ContainerState, EngineError};
use crate::sandbox::model::{NetworkPolicy, Resources};
use crate::sandbox::registry::{Daemon, Launched};
use crate::sandbox::tenure::Tenure;
use crate::sandbox::{LABEL_SANDBOX, LABEL_WARM, Sandboxes, container_name, health, sandbox_of};
use crate::text;

/// The port of every tl-init.
const DAEMON_PORT: u16 = 9501;
/// Where the program and its token are in a container. `/run` is in memory, so that no snapshot has them.
const INIT_PATH: &str = "/usr/lib/tl-init/tl-init";
const TOKEN_PATH: &str = "/run/tl-host/token";
/// The network of sandboxes that must not reach the internet.
pub(crate) const INTERNAL_NETWORK: &str = "tl-host-internal";

/// The first and the longest pause between two questions whether tl-init is ready.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// How often the engine is asked whether the container still runs, while its tl-init does not answer.
const INSPECT_EVERY: Duration = Duration::from_millis(200);
/// How many lines of the container's output are looked at to explain its end.
const TAIL_LINES: u32 = 30;
/// How many of them are shown, and how much of each, in bytes.
const LAST_LINES: usize = 5;
const MAX_LINE: usize = 1024;

/// What a container is made from.
pub(crate) struct Launch<'a> {
    pub(crate) id: &'a str,
    pub(crate) image: &'a str,
    pub(crate) resources: Resources,
    pub(crate) entrypoint: &'a [String],
    pub(crate) network_policy: NetworkPolicy,
    /// For a container that is started ahead.
    pub(crate) warm_label: Option<&'a str>,
}

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("its token cannot be written: {0}")]
    Token(io::Error),
    #[error("its record cannot be written: {0}")]
    Record(io::Error),
    #[error("it has ended with exit code {code}: {output}")]
    Ended { code: i64, output: String },
    #[error("it was not ready within {limit:?} ({last}); its output: {output}")]
    NotReady { limit: Duration, last: String, output: String },
    #[error("the engine has given it no address")]
    NoAddress,
}

impl Sandboxes {
    /// Makes and starts a container. After an error a part of it may be left: the caller removes it by its name.
    pub(crate) fn launch(&self, launch: &Launch<'_>) -> Result<Launched, LaunchError> {
        let token = self.store.make_token(launch.id).map_err(LaunchError::Token)?;
        let slot = self.slots.take(launch.warm_label.is_none());
        if !launch.network_policy.allow_internet_access {
            self.engine.ensure_network(INTERNAL_NETWORK, true)?;
        }
        let container = self.engine.create(&self.container_spec(launch))?;
        self.engine.start(&container)?;
        // What is slow in the container keeps no other from being started.
        drop(slot);
        let daemon = self.wait_until_ready(&container, token, launch.entrypoint.first())?;
        Ok(Launched { container, daemon })
    }

    fn container_spec(&self, launch: &Launch<'_>) -> ContainerSpec {
        let mut command = vec![INIT_PATH.to_owned()];
        let listen = format!("0.0.0.0:{DAEMON_PORT}");
        let options = ["--token-file", TOKEN_PATH, "--create-user", "tl-user:1000", "--listen", &listen];
        command.extend(options.map(str::to_owned));
        if !launch.entrypoint.is_empty() {
            command.push("--".to_owned());
            command.extend_from_slice(launch.entrypoint);
        }
        let mut labels = vec![(LABEL_SANDBOX, launch.id)];
        labels.extend(launch.warm_label.map(|value| (LABEL_WARM, value)));
        let mounts = [(self.settings.init.clone(), INIT_PATH), (self.store.token_path(launch.id), TOKEN_PATH)];
        let is_internal = !launch.network_policy.allow_internet_access;
        let bytes = |mebibytes: u64| mebibytes.saturating_mul(1 << 20);
        ContainerSpec {
            name: container_name(launch.id),
            image: launch.image.to_owned(),
            command,
            labels: self.labels(&labels),
            read_only_mounts: mounts.map(|(file, path)| (file, path.to_owned())).to_vec(),
            tmpfs: vec!["/run".to_owned()],
            milli_cpus: milli_cpus(launch.resources.cpus),
            memory_bytes: Some(bytes(launch.resources.memory_mb)),
            // Where the engine cannot limit it, the sandbox has the whole disk.
            disk_bytes: launch.resources.disk_mb.filter(|_| self.info.limits_disk).map(bytes),
            network: is_internal.then(|| INTERNAL_NETWORK.to_owned()),
            published_port: self.info.is_rootless.then_some(DAEMON_PORT),
            ulimits: self.settings.ulimits.clone(),
            runtime: self.settings.runtime.clone(),
            hostname: Some(launch.id.to_owned()),
        }
    }

    /// Where the tl-init of a container is reached.
    pub(crate) fn daemon_address(&self, container: &Container) -> Option<SocketAddr> {
        if self.info.is_rootless {
            return Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), container.published_at?));
        }
        Some(SocketAddr::new(container.address?, DAEMON_PORT))
    }

    /// How the tl-init of a container that runs is reached; None if the engine has given it no address, or it is not that
    /// of a sandbox.
    pub(crate) fn daemon(&self, container: &Container, token: String) -> Option<Daemon> {
        let address = self.daemon_address(container)?;
        let id = sandbox_of(&container.name)?;
        Some(Daemon { address, token, tenure: Arc::new(Tenure::of(container, id, TOKEN_PATH)) })
    }

    /// Waits until the tl-init of a container answers and its main process runs, or until the container has ended.
    fn wait_until_ready(
        &self,
        container: &str,
        token: String,
        main_process: Option<&String>,
    ) -> Result<Daemon, LaunchError> {
        let begin = Instant::now();
        let limit = self.settings.start_limit;
        let mut pause = FIRST_PAUSE;
        let mut daemon = self.daemon(&self.running(container)?, token).ok_or(LaunchError::NoAddress)?;
        let mut inspected = Instant::now();
        loop {
            let is_ready = health::is_up(daemon.address).and_then(|()| {
                main_process.map_or(Ok(()), |command| health::main_process_runs(daemon.address, &daemon.token, command))
            });
            let Err(error) = is_ready else { return Ok(daemon) };
            if begin.elapsed() >= limit {
                let output = self.output(container);
                return Err(LaunchError::NotReady { limit, last: error.to_string(), output });
            }
            sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            // A port on which nothing listens yet is normal at first; anything else may be the end of the container.
            let is_normal = matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::WouldBlock);
            if !is_normal || inspected.elapsed() > INSPECT_EVERY {
                daemon = self.daemon(&self.running(container)?, daemon.token).ok_or(LaunchError::NoAddress)?;
                inspected = Instant::now();
            }
        }
    }

    /// Inspects a container that must run.
    fn running(&self, container: &str) -> Result<Container, LaunchError> {
        let found = self.engine.inspect(container)?;
        if found.state == ContainerState::Running {
            return Ok(found);
        }
        let code = found.exit_code.unwrap_or(-1);
        Err(LaunchError::Ended { code, output: self.output(container) })
    }

    /// The lines of a container's output that explain its end.
    fn output(&self, container: &str) -> String {
        match self.engine.logs_tail(container, TAIL_LINES) {
            Ok(output) => explanation(&output),
            Err(error) => format!("(its output cannot be read: {error})"),
        }
    }
}

/// The limit on CPUs in thousandths; None for no limit.
fn milli_cpus(cpus: f64) -> Option<u64> {
    let milli = (cpus * 1000.0).round();
    // In range: the API takes positive numbers of a few CPUs.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 1 and 10^9")]
    (1.0..=1e9).contains(&milli).then_some(milli as u64)
}

/// What the output says about the end: the errors of tl-init or, without any, the last lines of its main process.
fn explanation(output: &str) -> String {
    let lines = output.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let (log, others): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("tl-init "));
    let errors: Vec<&str> = log.iter().filter_map(|line| line.split_once(" ERROR ")).map(|(_, text)| text).collect();
    let chosen = if errors.is_empty() { others } else { errors };
    match chosen.get(chosen.len().saturating_sub(LAST_LINES)..) {
        Some([]) | None => "(no output)".to_owned(),
        Some(last) => last.iter().map(|line| shortened(line)).collect::<Vec<_>>().join("\n"),
    }
}

fn shortened(line: &str) -> Cow<'_, str> {
    match text::prefix(line, MAX_LINE) {
        start if start.len() < line.len() => Cow::Owned(format!("{start}…")),
        whole => Cow::Borrowed(whole),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_become_thousandths() {
        for (cpus, milli) in [(1.0, Some(1000)), (0.5, Some(500)), (0.0015, Some(2)), (0.0, None), (-1.0, None)] {
            assert_eq!(milli_cpus(cpus), milli, "{cpus}");
        }
        assert_eq!(milli_cpus(f64::NAN), None);
        assert_eq!(milli_cpus(f64::INFINITY), None);
    }

    #[test]
    fn errors_explain_an_end_and_without_one_the_last_lines() {
        let log = "tl-init 1.1 INFO  listening\nx\ntl-init 1.2 ERROR the command \"/nope\" cannot be started\n";
        assert_eq!(explanation(log), "the command \"/nope\" cannot be started");
        assert_eq!(explanation("tl-init 1.1 INFO  listening\nwhy\ntl-init 1.2 INFO  bye\n"), "why");
        assert_eq!(explanation("1\n2\n\n3\n4\n5\n6\n"), "2\n3\n4\n5\n6");
        assert_eq!(explanation("\ntl-init 1.1 INFO  bye\n"), "(no output)");
        let long = format!("{}\n", "é".repeat(1 << 20));
        let short = explanation(&long.repeat(9));
        assert_eq!(short.lines().count(), LAST_LINES);
        assert!(short.lines().all(|line| line == format!("{}…", "é".repeat(MAX_LINE / 2))), "{}", short.len());
    }
}
