//! Checks of the engine: whether it is there, what it limits, and the default image.

use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;

use super::elf;
use super::finding::{Finding, Verdict};
use crate::engine::{Engine, EngineError, EngineInfo, EngineUrl};
use crate::program::config::Config;
use crate::program::setup;

/// An engine that answers, and that has the default image.
pub(super) struct Found {
    pub(super) engine: Engine,
    pub(super) info: EngineInfo,
}

pub(super) fn engine(config: &Config, init: Option<&Path>, show: &mut impl FnMut(Finding)) -> Option<Found> {
    let engine = setup::engine(config);
    let info = match engine.info() {
        Ok(info) => info,
        Err(error) => {
            // Where it was looked for is Docker's socket, if neither is there.
            let wanted = config.engine.clone().unwrap_or_else(EngineUrl::podman);
            show(Finding::missing("engine", how_to_get_one(&wanted, &error)));
            return None;
        }
    };
    let rights = if info.is_rootless { "rootless" } else { "with root" };
    let sentence = format!("{} at {}, {}, {rights}", info.name, engine.url(), info.architecture);
    show(Finding::ok("engine", sentence));
    show(runtime(config, &info));
    show(limits(&info));
    if let Some(Ok(Some(program))) = init.map(elf::read)
        && program.architecture != info.architecture
    {
        let sentence = format!("it is for {}, and the engine for {}", program.architecture, info.architecture);
        show(Finding::missing("tl-init", sentence));
        return None;
    }
    let image = image(config, &engine, &info);
    let is_there = image.verdict == Verdict::Ok;
    show(image);
    is_there.then_some(Found { engine, info })
}

/// Why there is no engine, and what brings one: Podman's service would listen at `url`.
fn how_to_get_one(url: &EngineUrl, error: &EngineError) -> String {
    let is_installed = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let EngineError::Unreachable { .. } = error else { return error.to_string() };
    let remedy = if is_installed("podman") {
        start_podman(url)
    } else if is_installed("docker") {
        "docker is installed: `systemctl start docker` starts it; its socket is open to root and to the group docker"
            .to_owned()
    } else {
        "on Debian, `apt install podman runc netavark aardvark-dns iptables` and `systemctl start podman.socket` bring \
         one; `make host` does all that"
            .to_owned()
    };
    format!("{error}; {remedy}")
}

/// The commands that start Podman's service at `url`, as root or as another user.
fn start_podman(url: &EngineUrl) -> String {
    if !geteuid().is_root() {
        return "podman is installed: `systemctl --user start podman.socket` starts it, and `--engine \
                unix://$XDG_RUNTIME_DIR/podman/podman.sock` uses it"
            .to_owned();
    }
    let directory = match url {
        EngineUrl::Unix(path) => path.parent().filter(|directory| !directory.exists()),
        EngineUrl::Tcp(_) => None,
    };
    let make = directory.map_or_else(String::new, |directory| format!("mkdir {} && ", directory.display()));
    format!(
        "podman is installed: `systemctl start podman.socket` starts it, or without systemd `{make}podman system \
         service --time 0 {url}`"
    )
}

fn runtime(config: &Config, info: &EngineInfo) -> Finding {
    match &config.runtime {
        Some(runtime) if !info.runtimes.is_empty() && !info.runtimes.contains(runtime) => Finding::warning(
            "runtime",
            format!("the engine does not name {runtime} among its runtimes, which are {}", info.runtimes.join(", ")),
        ),
        Some(runtime) => Finding::ok("runtime", runtime.as_str()),
        None => Finding::ok("runtime", format!("{}, the engine's default", info.default_runtime)),
    }
}

/// Whether the limits of sandboxes are applied.
fn limits(info: &EngineInfo) -> Finding {
    let absent: Vec<&str> = [("memory", info.limits_memory), ("CPUs", info.limits_cpus)]
        .into_iter()
        .filter_map(|(name, applied)| (!applied).then_some(name))
        .collect();
    if !absent.is_empty() {
        let sentence = format!(
            "the engine does not limit {}: the cgroup controllers are not there, or are not delegated to this user",
            absent.join(" and ")
        );
        return Finding::warning("limits", sentence);
    }
    let disk = if info.limits_disk { "and the disk" } else { "but not the disk, which takes XFS with prjquota" };
    Finding::ok("limits", format!("memory and CPUs of a sandbox are limited, {disk}"))
}

fn image(config: &Config, engine: &Engine, info: &EngineInfo) -> Finding {
    const SUBJECT: &str = "image";
    let name = &config.default_image;
    match engine.image(name) {
        Ok(image) if image.architecture.is_empty() || image.architecture == info.architecture => {
            Finding::ok(SUBJECT, format!("{name}, {} MiB", image.size_bytes >> 20))
        }
        Ok(image) => {
            let sentence = format!("{name} is for {}, and the engine for {}", image.architecture, info.architecture);
            Finding::missing(SUBJECT, sentence)
        }
        Err(EngineError::NotFound(_)) => Finding::missing(
            SUBJECT,
            format!(
                "there is no {name}; `make host` makes the default one, `tl-host import DIR --name {name}` makes one of \
                 a root file system, and --default-image names another"
            ),
        ),
        Err(error) => Finding::missing(SUBJECT, error.to_string()),
    }
}
