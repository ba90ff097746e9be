//! The JSON of the API: the fields that are used, tolerant where the engines differ.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use super::{Container, ContainerEvent, ContainerState, EngineInfo, Image};

/// A list or map that some engines send as null.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(source: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Version {
    pub(super) api_version: String,
    #[serde(rename = "MinAPIVersion")]
    pub(super) min_api_version: Option<String>,
    pub(super) version: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) components: Vec<Component>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Component {
    name: String,
    version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Info {
    architecture: String,
    #[serde(rename = "NCPU")]
    cpus: u32,
    mem_total: u64,
    #[serde(deserialize_with = "or_default")]
    runtimes: BTreeMap<String, serde::de::IgnoredAny>,
    default_runtime: String,
    #[serde(deserialize_with = "or_default")]
    security_options: Vec<String>,
    /// Only Podman.
    rootless: bool,
    memory_limit: bool,
    cpu_cfs_quota: bool,
    pub(super) driver: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) driver_status: Vec<(String, String)>,
    pub(super) docker_root_dir: String,
}

impl Info {
    pub(super) fn into_engine_info(self, version: &Version, limits_disk: bool) -> EngineInfo {
        // `Podman Engine` or `Engine`, which is Docker's.
        let name = match version.components.iter().find(|component| component.name.ends_with("Engine")) {
            Some(component) if component.name == "Engine" => format!("Docker Engine {}", component.version),
            Some(component) => format!("{} {}", component.name, component.version),
            None => format!("engine {}", version.version),
        };
        EngineInfo {
            name,
            architecture: image_architecture(&self.architecture).to_owned(),
            is_rootless: self.rootless || self.security_options.iter().any(|option| is_rootless(option)),
            cpus: self.cpus,
            memory_bytes: self.mem_total,
            runtimes: self.runtimes.into_keys().collect(),
            default_runtime: self.default_runtime,
            limits_memory: self.memory_limit,
            limits_cpus: self.cpu_cfs_quota,
            limits_disk,
            disk_mb: None,
        }
    }
}

/// Docker: `name=rootless`, among others such as `name=seccomp,profile=default`.
fn is_rootless(option: &str) -> bool {
    option.split(',').any(|part| part == "name=rootless" || part == "rootless")
}

/// The architecture in the words of images; Docker says what `uname -m` says.
fn image_architecture(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The answer to requests that make something.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Created {
    pub(super) id: String,
}

/// `GET /containers/{id}/json`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: String,
    /// Docker puts a slash before it.
    #[serde(default)]
    name: String,
    state: State,
    #[serde(default, deserialize_with = "or_default")]
    config: Config,
    #[serde(default, deserialize_with = "or_default")]
    network_settings: NetworkSettings,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    #[serde(default)]
    pid: i32,
    #[serde(default)]
    exit_code: i64,
    #[serde(default, rename = "OOMKilled")]
    is_oom_killed: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(deserialize_with = "or_default")]
    networks: BTreeMap<String, Network>,
    #[serde(deserialize_with = "or_default")]
    ports: BTreeMap<String, Option<Vec<Binding>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Network {
    #[serde(rename = "IPAddress")]
    ip_address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Binding {
    host_port: String,
}

impl From<Inspected> for Container {
    fn from(inspected: Inspected) -> Container {
        let state = container_state(&inspected.state.status);
        let network = inspected.network_settings;
        let addresses = network.networks.values().map(|network| &network.ip_address);
        let address = [&network.ip_address].into_iter().chain(addresses).find_map(|text| text.parse::<IpAddr>().ok());
        let mut bindings = network.ports.values().flatten().flatten();
        Container {
            id: inspected.id,
            name: inspected.name.trim_start_matches('/').to_owned(),
            state,
            pid: (inspected.state.pid > 0).then_some(inspected.state.pid),
            exit_code: (state == ContainerState::Exited).then_some(inspected.state.exit_code),
            is_oom_killed: inspected.state.is_oom_killed,
            address,
            published_at: bindings.find_map(|binding| binding.host_port.parse().ok()),
            labels: inspected.config.labels.into_iter().collect(),
        }
    }
}

/// `Status` of an inspected container. Docker and Podman differ in rare states only.
fn container_state(status: &str) -> ContainerState {
    match status {
        // Podman: `initialized` is created in the runtime, too, and not started.
        "created" | "configured" | "initialized" => ContainerState::Created,
        "running" => ContainerState::Running,
        "paused" => ContainerState::Paused,
        // Podman: `stopped` is exited and not cleaned up yet.
        "exited" | "stopped" => ContainerState::Exited,
        _ => ContainerState::Other,
    }
}

/// An element of `GET /containers/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedContainer {
    pub(super) id: String,
    /// Docker puts a slash before each.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) names: Vec<String>,
}

/// `GET /images/{name}/json`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InspectedImage {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    repo_tags: Vec<String>,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    size: u64,
    #[serde(default, deserialize_with = "or_default")]
    config: Config,
}

impl From<InspectedImage> for Image {
    fn from(image: InspectedImage) -> Image {
        Image {
            id: image.id,
            names: image.repo_tags,
            architecture: image_architecture(&image.architecture).to_owned(),
            size_bytes: image.size,
            labels: image.config.labels.into_iter().collect(),
        }
    }
}

/// `GET /networks/{name}`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InspectedNetwork {
    #[serde(default)]
    pub(super) internal: bool,
}

/// An element of `GET /images/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedImage {
    pub(super) id: String,
}

/// A line of the answer to an import.
#[derive(Debug, Deserialize)]
pub(super) struct Progress {
    pub(super) status: Option<String>,
    pub(super) error: Option<String>,
}

/// A line of `GET /events`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Event {
    action: String,
    actor: Actor,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    attributes: BTreeMap<String, String>,
}

impl From<Event> for ContainerEvent {
    fn from(event: Event) -> ContainerEvent {
        let action = match event.action.as_str() {
            // Podman.
            "died" => "die",
            // Docker.
            "destroy" => "remove",
            other => other,
        };
        let code = event.actor.attributes.get("exitCode").or_else(|| event.actor.attributes.get("containerExitCode"));
        ContainerEvent {
            container: event.actor.id,
            name: event.actor.attributes.get("name").cloned().unwrap_or_default(),
            action: action.to_owned(),
            exit_code: code.filter(|_| action == "die").and_then(|code| code.parse().ok()),
        }
    }
}
