//! Calls for containers.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Call, PLAIN, SLOW};
use super::{Container, ContainerSpec, Engine, EngineError, wire};

/// Maximum size of the file with the output of a container's PID 1.
const LOG_SIZE: &str = "10m";

impl Engine {
    /// Makes a container and returns its id. It does not run yet.
    pub(crate) fn create(&self, spec: &ContainerSpec) -> Result<String, EngineError> {
        let call = Call::new("POST", "/containers/create").query("name", &spec.name).body(body(spec)).limit(SLOW);
        Ok(self.json::<wire::Created>(&call)?.id)
    }

    /// Starts a container. It is no error if it runs already.
    pub(crate) fn start(&self, id: &str) -> Result<(), EngineError> {
        self.change(id, "start", SLOW, &[])
    }

    /// Ends PID 1 with SIGTERM and, after `grace`, with SIGKILL. It is no error if it has ended already.
    pub(crate) fn stop(&self, id: &str, grace: Duration) -> Result<(), EngineError> {
        // Whole seconds, at least the wanted time.
        let seconds = grace.as_millis().div_ceil(1000).to_string();
        self.change(id, "stop", SLOW.saturating_add(grace), &[("t", seconds)])
    }

    pub(crate) fn pause(&self, id: &str) -> Result<(), EngineError> {
        self.change(id, "pause", PLAIN, &[])
    }

    pub(crate) fn unpause(&self, id: &str) -> Result<(), EngineError> {
        self.change(id, "unpause", PLAIN, &[])
    }

    fn change(
        &self,
        id: &str,
        action: &str,
        limit: Duration,
        query: &[(&'static str, String)],
    ) -> Result<(), EngineError> {
        let mut call = Call::new("POST", path(id, action)?).limit(limit);
        call.query.extend_from_slice(query);
        self.bytes(&call).map(drop)
    }

    /// Removes a container with its anonymous volumes, and ends it before if it runs. It is no error if it is gone.
    pub(crate) fn remove(&self, id: &str) -> Result<(), EngineError> {
        let call = Call::new("DELETE", path(id, "")?).query("force", "true").query("v", "true").limit(SLOW);
        match self.bytes(&call) {
            Ok(_) | Err(EngineError::NotFound(_)) => Ok(()),
            // Somebody else removes it: wait for that.
            Err(EngineError::Conflict(_)) => {
                let call = Call::new("POST", path(id, "wait")?).query("condition", "removed").limit(SLOW);
                match self.bytes(&call) {
                    Ok(_) | Err(EngineError::NotFound(_)) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn inspect(&self, id: &str) -> Result<Container, EngineError> {
        let call = Call::new("GET", path(id, "json")?);
        Ok(self.json::<wire::Inspected>(&call)?.into())
    }

    /// All containers with this label, whether they run or not, and the names of those of which the engine does not tell
    /// more.
    pub(crate) fn list(&self, label: (&str, &str)) -> Result<(Vec<Container>, Vec<String>), EngineError> {
        let call = Call::new("GET", "/containers/json").query("all", "true").query("filters", label_filter(label));
        let mut containers = Vec::new();
        let mut broken = Vec::new();
        // The list has neither exit codes nor, with some engines, addresses.
        for listed in self.json::<Vec<wire::ListedContainer>>(&call)? {
            match self.inspect(&listed.id) {
                Ok(container) => containers.push(container),
                // Removed meanwhile.
                Err(EngineError::NotFound(_)) => {}
                Err(error @ (EngineError::Unreachable { .. } | EngineError::TimedOut(..))) => return Err(error),
                Err(error) => {
                    log::warn!("container {} cannot be inspected: {error}", listed.id);
                    broken.extend(listed.names.iter().map(|name| name.trim_start_matches('/').to_owned()));
                }
            }
        }
        Ok((containers, broken))
    }

    /// The last lines that PID 1 has written to stdout and stderr.
    pub(crate) fn logs_tail(&self, id: &str, lines: u32) -> Result<String, EngineError> {
        let call = Call::new("GET", path(id, "logs")?).query("stdout", "true").query("stderr", "true");
        let frames = self.bytes(&call.query("tail", lines.to_string()))?;
        Ok(String::from_utf8_lossy(&payload(&frames)).into_owned())
    }
}

/// The path of a call for one container. An id or name has letters, digits and a few other characters; the engine would
/// take others as a part of the URL.
fn path(id: &str, action: &str) -> Result<String, EngineError> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if id.is_empty() || id.starts_with('.') || !id.bytes().all(is_valid) {
        return Err(EngineError::NotFound(format!("no such container: {id:?}")));
    }
    let separator = if action.is_empty() { "" } else { "/" };
    Ok(format!("/containers/{id}{separator}{action}"))
}

/// The filter for things that have a label.
pub(super) fn label_filter((name, value): (&str, &str)) -> String {
    json!({ "label": [format!("{name}={value}")] }).to_string()
}

/// Joins the payloads of the frames in which output comes: a byte for the stream, three zeros, four for the length.
fn payload(mut frames: &[u8]) -> Vec<u8> {
    let mut output = Vec::new();
    while let Some(([_, _, _, _, length @ ..], rest)) = frames.split_first_chunk::<8>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        output.extend_from_slice(bytes);
        frames = rest;
    }
    output
}

fn body(spec: &ContainerSpec) -> Value {
    let pairs = |pairs: &[(String, String)]| -> Value {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let mut body = json!({
        "Image": spec.image,
        "Entrypoint": spec.command.first(),
        "Cmd": spec.command.get(1..).unwrap_or_default(),
        "Labels": pairs(&spec.labels),
        // What the image says of these does not fit to another PID 1.
        "User": "0:0",
        "StopSignal": "SIGTERM",
        "Healthcheck": { "Test": ["NONE"] },
        "HostConfig": host_config(spec),
    });
    if let Some(hostname) = &spec.hostname {
        set(&mut body, "Hostname", hostname.as_str());
    }
    if let Some(port) = spec.published_port {
        set(&mut body, "ExposedPorts", json!({ format!("{port}/tcp"): {} }));
    }
    body
}

fn host_config(spec: &ContainerSpec) -> Value {
    let mounts: Vec<Value> = spec
        .read_only_mounts
        .iter()
        // JSON has no other text. A path that is not UTF-8 is refused before; the engine would not find this one.
        .map(|(source, target)| (source.to_string_lossy(), target))
        .map(|(source, target)| json!({ "Type": "bind", "Source": source, "Target": target, "ReadOnly": true }))
        .collect();
    let tmpfs: serde_json::Map<String, Value> =
        spec.tmpfs.iter().map(|path| (path.clone(), Value::from("rw,nosuid,nodev,exec,mode=755"))).collect();
    let ulimits: Vec<Value> =
        spec.ulimits.iter().map(|(name, soft, hard)| json!({ "Name": name, "Soft": soft, "Hard": hard })).collect();
    let mut config = json!({
        "Mounts": mounts,
        "Tmpfs": tmpfs,
        "Ulimits": ulimits,
        // Docker gives it by default: root could then send packets with the address of another container of the network.
        "CapDrop": ["NET_RAW"],
        "Init": false,
        // What PID 1 writes would fill the disk otherwise. Both engines have this driver.
        "LogConfig": { "Type": "json-file", "Config": { "max-size": LOG_SIZE } },
    });
    if let Some(milli_cpus) = spec.milli_cpus {
        set(&mut config, "NanoCpus", milli_cpus.saturating_mul(1_000_000));
    }
    if let Some(bytes) = spec.memory_bytes {
        set(&mut config, "Memory", bytes);
    }
    if let Some(bytes) = spec.disk_bytes {
        set(&mut config, "StorageOpt", json!({ "size": bytes.to_string() }));
    }
    if let Some(network) = &spec.network {
        set(&mut config, "NetworkMode", network.as_str());
    }
    if let Some(port) = spec.published_port {
        // An empty port: the engine chooses one.
        let bindings = json!([{ "HostIp": "127.0.0.1", "HostPort": "" }]);
        set(&mut config, "PortBindings", json!({ format!("{port}/tcp"): bindings }));
    }
    if let Some(runtime) = &spec.runtime {
        set(&mut config, "Runtime", runtime.as_str());
    }
    config
}

fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Podman does not give the capability by default; Docker does.
    #[test]
    fn no_container_may_send_packets_with_the_address_of_another_one() {
        assert_eq!(body(&ContainerSpec::default())["HostConfig"]["CapDrop"], json!(["NET_RAW"]));
    }

    #[test]
    fn limits_reach_the_engine_in_its_units_and_none_is_no_limit() {
        let spec = ContainerSpec {
            disk_bytes: Some(100 << 20),
            memory_bytes: Some(64 << 20),
            milli_cpus: Some(500),
            ..ContainerSpec::default()
        };
        let config = &body(&spec)["HostConfig"];
        assert_eq!(config["StorageOpt"], json!({ "size": "104857600" }));
        assert_eq!((&config["Memory"], &config["NanoCpus"]), (&json!(67_108_864), &json!(500_000_000)));
        let config = &body(&ContainerSpec::default())["HostConfig"];
        for limit in ["StorageOpt", "Memory", "NanoCpus"] {
            assert!(config.get(limit).is_none(), "{limit}: {config}");
        }
    }
}
