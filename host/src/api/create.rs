//! The bodies of `POST sandboxes` and `PATCH sandboxes/{sandbox}`: parsed and checked, without any effect.

use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};
use tl_supervisor::http::json::{Integer, JsonString, JsonValue, Object, Scalar, StringList, Truth};
use tl_supervisor::http::message::ApiError;

use crate::api::errors;
use crate::sandbox::model::{Change, NetworkPolicy, Resources, SandboxSpec, Snapshot};

/// The port of tl-init in each sandbox.
const DAEMON_PORT: u16 = 9501;

/// What a new sandbox has unless the request or its snapshot says otherwise.
pub(crate) const DEFAULT_RESOURCES: Resources = Resources { cpus: 1.0, memory_mb: 1024, disk_mb: None };

/// The greatest values. Ten years, and more than any machine has.
const MAX_SECONDS: u64 = 10 * 366 * 24 * 60 * 60;
const MAX_CPUS: f64 = 4096.0;
const MAX_MB: u64 = 1 << 30;

/// In less memory than this no sandbox starts.
const MIN_MEMORY_MB: u64 = 16;

type Ports = List<Integer<1, 65535>>;

/// The body of `POST sandboxes`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct CreateBody {
    name: Option<JsonString>,
    image: Option<JsonString>,
    resources: Option<Object<ResourcesBody>>,
    timeout_secs: Option<Integer<0, MAX_SECONDS>>,
    entrypoint: Option<StringList>,
    network: Option<Object<NetworkBody>>,
    snapshot_id: Option<JsonString>,
    exposed_ports: Option<Ports>,
    allow_unauthenticated_access: Option<Truth>,
    wait: Option<Truth>,
    auto_resume: Option<Truth>,
    /// A sandbox starts at once or not at all, so that any bound is kept.
    #[serde(rename = "max_pending_secs")]
    _max_pending_secs: Option<Integer<0, MAX_SECONDS>>,
    file_systems: Option<List<IgnoredAny>>,
    cloud_init_base64: Option<JsonString>,
}

#[derive(Debug, Default, Deserialize)]
struct ResourcesBody {
    cpus: Option<Cpus>,
    memory_mb: Option<Integer<MIN_MEMORY_MB, MAX_MB>>,
    disk_mb: Option<Integer<1, MAX_MB>>,
    /// The name of `disk_mb` in older clients.
    ephemeral_disk_mb: Option<Integer<0, MAX_MB>>,
    gpus: Option<List<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
struct NetworkBody {
    allow_internet_access: Option<Truth>,
    allow_out: Option<StringList>,
    deny_out: Option<StringList>,
}

/// The body of `PATCH sandboxes/{sandbox}`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct UpdateBody {
    name: Option<JsonString>,
    exposed_ports: Option<Ports>,
    allow_unauthenticated_access: Option<Truth>,
    auto_resume: Option<Truth>,
    resources: Option<IgnoredAny>,
    /// `null` is not absent: it removes the policy.
    #[serde(default, deserialize_with = "is_given")]
    network: bool,
}

fn is_given<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(from).map(|_| true)
}

/// A number of CPUs, which may be a fraction.
#[derive(Clone, Copy, Debug)]
struct Cpus(f64);

impl JsonValue<'_> for Cpus {
    fn expected() -> String {
        format!("a number of CPUs from 0.01 to {MAX_CPUS}")
    }
    fn from_scalar(value: Scalar) -> Result<Cpus, Scalar> {
        let number = match value {
            Scalar::Integer(number) => number as f64,
            Scalar::Float(number) => number,
            value => return Err(value),
        };
        if (0.01..=MAX_CPUS).contains(&number) { Ok(Cpus(number)) } else { Err(value) }
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Cpus, D::Error> {
        Cpus::read(from)
    }
}

/// A JSON list. `Vec` would describe itself in terms of Rust.
#[derive(Clone, Debug)]
struct List<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> JsonValue<'de> for List<T> {
    fn expected() -> String {
        "a list".to_owned()
    }
    fn from_list<A: serde::de::SeqAccess<'de>>(mut list: A) -> Result<List<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(List(items))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<List<T>, D::Error> {
        List::read(from)
    }
}

/// A request for a sandbox that has been checked, as far as that is possible without the snapshot that it may name.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) name: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) snapshot_id: Option<String>,
    /// Whether the answer waits until the sandbox runs.
    pub(crate) wait: bool,
    cpus: Option<f64>,
    memory_mb: Option<u64>,
    disk_mb: Option<u64>,
    timeout_secs: Option<u64>,
    entrypoint: Option<Vec<String>>,
    network_policy: NetworkPolicy,
    exposed_ports: Option<Vec<u16>>,
    allow_unauthenticated_access: Option<bool>,
}

impl CreateBody {
    /// Checks what the types of the fields do not say.
    ///
    /// # Errors
    /// 400 or 501, with a sentence that names the field.
    pub(crate) fn check(self) -> Result<Wanted, ApiError> {
        let resources = self.resources.map_or_else(ResourcesBody::default, |resources| resources.0);
        if resources.gpus.is_some_and(|gpus| !gpus.0.is_empty()) {
            return Err(ApiError::invalid("`resources.gpus`: sandboxes of this host have no GPU"));
        }
        if self.file_systems.is_some_and(|list| !list.0.is_empty()) {
            return Err(errors::no_file_systems("`file_systems`: "));
        }
        if self.cloud_init_base64.is_some_and(|text| !text.0.is_empty()) {
            let message = "`cloud_init_base64`: sandboxes of tl-host are containers, in which no cloud-init runs";
            return Err(errors::not_supported(message));
        }
        check_auto_resume(self.auto_resume)?;
        let entrypoint = self.entrypoint.map(|words| words.0).filter(|words| !words.is_empty());
        check_entrypoint(entrypoint.as_deref().unwrap_or_default())?;
        Ok(Wanted {
            name: self.name.map(|name| name.0),
            image: self.image.map(|image| not_empty("image", image.0)).transpose()?,
            snapshot_id: self.snapshot_id.map(|id| not_empty("snapshot_id", id.0)).transpose()?,
            wait: self.wait.is_none_or(|wait| wait.0),
            cpus: resources.cpus.map(|cpus| cpus.0),
            memory_mb: resources.memory_mb.map(|number| number.0),
            disk_mb: resources.disk_mb.map(|number| number.0).or_else(|| {
                let older = resources.ephemeral_disk_mb.map(|number| number.0);
                older.filter(|number| *number > 0)
            }),
            timeout_secs: self.timeout_secs.map(|seconds| seconds.0).filter(|seconds| *seconds > 0),
            entrypoint,
            network_policy: network_policy(self.network)?,
            exposed_ports: ports(self.exposed_ports)?,
            allow_unauthenticated_access: self.allow_unauthenticated_access.map(|truth| truth.0),
        })
    }
}

impl Wanted {
    /// What the sandbox is made from. `snapshot` is the one that it starts from, whose resources, entrypoint, exposed
    /// ports and access to them it has unless the request says otherwise.
    pub(crate) fn into_spec(self, snapshot: Option<&Snapshot>, default_image: &str) -> SandboxSpec {
        let base = snapshot.map_or(DEFAULT_RESOURCES, |snapshot| snapshot.resources);
        let image = match snapshot {
            Some(snapshot) => snapshot.base_image.clone(),
            None => self.image.unwrap_or_else(|| default_image.to_owned()),
        };
        let entrypoint = self.entrypoint.or_else(|| snapshot.map(|snapshot| snapshot.entrypoint.clone()));
        let exposed_ports = self.exposed_ports.or_else(|| snapshot.map(|snapshot| snapshot.exposed_ports.clone()));
        SandboxSpec {
            name: self.name,
            image,
            resources: Resources {
                cpus: self.cpus.unwrap_or(base.cpus),
                memory_mb: self.memory_mb.unwrap_or(base.memory_mb),
                disk_mb: self.disk_mb.or(base.disk_mb),
            },
            timeout_secs: self.timeout_secs,
            entrypoint: entrypoint.unwrap_or_default(),
            network_policy: self.network_policy,
            snapshot_id: snapshot.map(|snapshot| snapshot.id.clone()),
            exposed_ports: exposed_ports.unwrap_or_default(),
            allow_unauthenticated_access: self
                .allow_unauthenticated_access
                .unwrap_or_else(|| snapshot.is_some_and(|snapshot| snapshot.allow_unauthenticated_access)),
        }
    }
}

impl UpdateBody {
    /// What is to be changed.
    ///
    /// # Errors
    /// 400 or 501, with a sentence that names the field.
    pub(crate) fn check(self) -> Result<Change, ApiError> {
        if self.resources.is_some() {
            return Err(errors::not_supported(
                "`resources`: the resources of a sandbox cannot be changed; make a new one",
            ));
        }
        if self.network {
            let message = "`network`: the network policy of a sandbox cannot be changed; make a new one";
            return Err(errors::not_supported(message));
        }
        check_auto_resume(self.auto_resume)?;
        Ok(Change {
            name: self.name.map(|name| name.0),
            exposed_ports: ports(self.exposed_ports)?,
            allow_unauthenticated_access: self.allow_unauthenticated_access.map(|truth| truth.0),
        })
    }
}

fn not_empty(field: &str, text: String) -> Result<String, ApiError> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err(ApiError::invalid(format!("`{field}`: must not be empty or have control characters")));
    }
    Ok(text)
}

fn check_auto_resume(auto_resume: Option<Truth>) -> Result<(), ApiError> {
    if auto_resume == Some(Truth(false)) {
        let message = "`auto_resume`: a request to a suspended sandbox always resumes it; false is not supported";
        return Err(errors::not_supported(message));
    }
    Ok(())
}

fn check_entrypoint(words: &[String]) -> Result<(), ApiError> {
    if words.first().is_some_and(String::is_empty) {
        return Err(ApiError::invalid("`entrypoint[0]`: the program must not be empty"));
    }
    match words.iter().position(|word| word.contains('\0')) {
        Some(at) => Err(ApiError::invalid(format!("`entrypoint[{at}]`: must not contain a NUL character"))),
        None => Ok(()),
    }
}

fn network_policy(network: Option<Object<NetworkBody>>) -> Result<NetworkPolicy, ApiError> {
    let network = network.map_or_else(NetworkBody::default, |network| network.0);
    for (field, list) in [("allow_out", &network.allow_out), ("deny_out", &network.deny_out)] {
        if list.as_ref().is_some_and(|list| !list.0.is_empty()) {
            let message =
                "only `allow_internet_access` can be set: single destinations can be neither allowed nor denied";
            return Err(ApiError::invalid(format!("`network.{field}`: {message}")));
        }
    }
    Ok(NetworkPolicy { allow_internet_access: network.allow_internet_access.is_none_or(|truth| truth.0) })
}

/// The ports in order, each once.
fn ports(ports: Option<Ports>) -> Result<Option<Vec<u16>>, ApiError> {
    let Some(ports) = ports else { return Ok(None) };
    let mut ports: Vec<u16> = ports.0.iter().filter_map(|port| u16::try_from(port.0).ok()).collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.contains(&DAEMON_PORT) {
        let message =
            format!("`exposed_ports`: {DAEMON_PORT} is the port of the sandbox's own API, which is always there");
        return Err(ApiError::invalid(message));
    }
    Ok(Some(ports))
}

/// The body of `POST sandboxes/{sandbox}/snapshot`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct SnapshotBody {
    pub(crate) name: Option<JsonString>,
    snapshot_type: Option<JsonString>,
}

impl SnapshotBody {
    /// Checks the type of the snapshot.
    ///
    /// # Errors
    /// 400 if it is not that of the file system.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        match self.snapshot_type.as_ref().map(|text| text.0.as_str()) {
            None | Some("filesystem") => Ok(()),
            Some("memory") => Err(ApiError::invalid(
                "`snapshot_type`: tl-host does not keep the memory of a sandbox; only `filesystem` is supported",
            )),
            Some(other) => {
                let shown: String = other.chars().take(60).collect();
                Err(ApiError::invalid(format!("`snapshot_type`: must be `filesystem`, not the string {shown:?}")))
            }
        }
    }
}

/// The answer to an unlimited disk, for clients that need a number.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ResourcesInfo {
    cpus: f64,
    memory_mb: u64,
    /// If the file system is not limited, the size of the disk of which it is a part.
    disk_mb: u64,
    /// The name of `disk_mb` in older clients.
    ephemeral_disk_mb: u64,
}

impl ResourcesInfo {
    /// `whole_disk_mb` is the size of the disk on which containers are; 0 if that is not known, as clients need a number.
    pub(crate) fn new(resources: Resources, whole_disk_mb: u64) -> ResourcesInfo {
        let Resources { cpus, memory_mb, disk_mb } = resources;
        let disk_mb = disk_mb.unwrap_or(whole_disk_mb);
        ResourcesInfo { cpus, memory_mb, disk_mb, ephemeral_disk_mb: disk_mb }
    }
}

#[cfg(test)]
mod tests {
    use tl_supervisor::http::json;

    use super::*;

    fn wanted(body: &str) -> Result<Wanted, ApiError> {
        json::parse::<CreateBody>(body.as_bytes())?.check()
    }

    fn spec(body: &str) -> SandboxSpec {
        wanted(body).unwrap().into_spec(None, "default-image")
    }

    fn change(body: &str) -> Result<Change, ApiError> {
        json::parse::<UpdateBody>(body.as_bytes())?.check()
    }

    #[test]
    fn every_field_is_read() {
        let body = r#"{"name": "my-env", "image": "debian", "resources": {"cpus": 0.5, "memory_mb": 512, "disk_mb": 64},
            "timeout_secs": 60, "entrypoint": ["sh", ""], "network": {"allow_internet_access": false},
            "exposed_ports": [8080, 80, 8080], "allow_unauthenticated_access": true, "new": 1}"#;
        let right = SandboxSpec {
            name: Some("my-env".to_owned()),
            image: "debian".to_owned(),
            resources: Resources { cpus: 0.5, memory_mb: 512, disk_mb: Some(64) },
            timeout_secs: Some(60),
            entrypoint: vec!["sh".to_owned(), String::new()],
            network_policy: NetworkPolicy { allow_internet_access: false },
            snapshot_id: None,
            exposed_ports: vec![80, 8080],
            allow_unauthenticated_access: true,
        };
        assert_eq!(spec(body), right);
    }

    #[test]
    fn absent_null_and_empty_fields_have_defaults() {
        let empty = spec("{}");
        assert_eq!((empty.image.as_str(), empty.resources), ("default-image", DEFAULT_RESOURCES));
        assert!(empty.network_policy.allow_internet_access && empty.entrypoint.is_empty());
        let nulls = r#"{"name": null, "image": null, "resources": null, "timeout_secs": 0, "entrypoint": null,
            "network": null, "snapshot_id": null, "exposed_ports": null, "allow_unauthenticated_access": null,
            "wait": null, "file_systems": null, "auto_resume": true, "max_pending_secs": 30}"#;
        assert_eq!(spec(nulls), empty);
        let empties = r#"{"resources": {"gpus": [], "ephemeral_disk_mb": 0}, "entrypoint": [], "file_systems": [],
            "network": {"allow_out": [], "deny_out": []}, "exposed_ports": []}"#;
        assert_eq!(spec(empties), empty);
        assert!(wanted("{}").unwrap().wait && !wanted(r#"{"wait": false}"#).unwrap().wait);
    }

    #[test]
    fn a_sandbox_has_what_its_snapshot_has_unless_the_request_says_otherwise() {
        let snapshot = Snapshot {
            id: "s".to_owned(),
            namespace: "default".to_owned(),
            name: None,
            sandbox_id: "x".to_owned(),
            base_image: "debian".to_owned(),
            image: "localhost/tl-snapshot:s".to_owned(),
            is_complete: true,
            is_hidden: false,
            size_bytes: 1,
            created_at: 1,
            resources: Resources { cpus: 2.0, memory_mb: 2048, disk_mb: Some(100) },
            entrypoint: vec!["server".to_owned()],
            exposed_ports: vec![80, 8080],
            allow_unauthenticated_access: true,
        };
        let made = |body: &str| wanted(body).unwrap().into_spec(Some(&snapshot), "default-image");
        let same = made(r#"{"snapshot_id": "s"}"#);
        assert_eq!(
            (same.resources, same.entrypoint, same.image),
            (snapshot.resources, snapshot.entrypoint.clone(), "debian".to_owned())
        );
        assert_eq!((same.exposed_ports, same.allow_unauthenticated_access), (vec![80, 8080], true));
        let closed = made(r#"{"snapshot_id": "s", "exposed_ports": [], "allow_unauthenticated_access": false}"#);
        assert_eq!((closed.exposed_ports, closed.allow_unauthenticated_access), (vec![], false));
        let null = made(r#"{"snapshot_id": "s", "exposed_ports": null, "allow_unauthenticated_access": null}"#);
        assert_eq!((null.exposed_ports, null.allow_unauthenticated_access), (vec![80, 8080], true));
        let other = made(r#"{"snapshot_id": "s", "resources": {"cpus": 1}, "entrypoint": ["sh"]}"#);
        assert_eq!(other.resources, Resources { cpus: 1.0, ..snapshot.resources });
        assert_eq!((other.entrypoint, other.snapshot_id.as_deref()), (vec!["sh".to_owned()], Some("s")));
    }

    #[test]
    fn the_sentence_of_an_error_names_the_field() {
        for (body, status, part) in [
            ("[]", 400, "the body: must be an object"),
            (r#"{"name": 7}"#, 400, "`name`: must be a string, not 7"),
            (r#"{"image": ""}"#, 400, "`image`: must not be empty"),
            (r#"{"image": ["debian"]}"#, 400, "`image`: must be a string, not a list"),
            (r#"{"resources": [1]}"#, 400, "`resources`: must be an object, not a list"),
            (
                r#"{"resources": {"cpus": 0}}"#,
                400,
                "`resources.cpus`: must be a number of CPUs from 0.01 to 4096, not 0",
            ),
            (r#"{"resources": {"cpus": "1"}}"#, 400, "`resources.cpus`"),
            (r#"{"resources": {"memory_mb": 1.5}}"#, 400, "`resources.memory_mb`: must be a whole number from 16 to"),
            (r#"{"resources": {"memory_mb": 15}}"#, 400, "`resources.memory_mb`"),
            (r#"{"resources": {"disk_mb": -1}}"#, 400, "`resources.disk_mb`"),
            (r#"{"resources": {"gpus": [{"count": 1, "model": "H100"}]}}"#, 400, "`resources.gpus`: "),
            (r#"{"resources": {"gpus": 1}}"#, 400, "`resources.gpus`: must be a list, not 1"),
            (r#"{"timeout_secs": -1}"#, 400, "`timeout_secs`: must be a whole number from 0 to"),
            (r#"{"timeout_secs": "60"}"#, 400, "`timeout_secs`"),
            (r#"{"entrypoint": "sh"}"#, 400, "`entrypoint`: must be a list of strings"),
            (r#"{"entrypoint": [""]}"#, 400, "`entrypoint[0]`"),
            (r#"{"entrypoint": ["sh", "\u0000"]}"#, 400, "`entrypoint[1]`"),
            (r#"{"network": {"allow_internet_access": "no"}}"#, 400, "`network.allow_internet_access`"),
            (r#"{"network": {"allow_out": ["1.1.1.1"]}}"#, 400, "`network.allow_out`"),
            (r#"{"network": {"deny_out": ["1.1.1.1"]}}"#, 400, "`network.deny_out`"),
            (r#"{"snapshot_id": 5}"#, 400, "`snapshot_id`"),
            (r#"{"exposed_ports": [80, 0]}"#, 400, "`exposed_ports[1]`: must be a whole number from 1 to 65535, not 0"),
            (r#"{"exposed_ports": [65536]}"#, 400, "`exposed_ports[0]`"),
            (r#"{"exposed_ports": [9501]}"#, 400, "`exposed_ports`: 9501"),
            (r#"{"exposed_ports": 80}"#, 400, "`exposed_ports`: must be a list, not 80"),
            (r#"{"allow_unauthenticated_access": 1}"#, 400, "`allow_unauthenticated_access`"),
            (r#"{"wait": "no"}"#, 400, "`wait`"),
            (r#"{"auto_resume": false}"#, 501, "`auto_resume`"),
            (r#"{"cloud_init_base64": "eA=="}"#, 501, "`cloud_init_base64`"),
            (r#"{"file_systems": [{"file_system_id": "f", "mount_path": "/m"}]}"#, 501, "`file_systems`"),
        ] {
            let error = wanted(body).unwrap_err();
            assert!(error.status() == status && error.to_string().contains(part), "{body}: {error}");
        }
    }

    #[test]
    fn a_change_has_only_what_was_given() {
        assert_eq!(change("{}").unwrap(), Change::default());
        let all = change(r#"{"name": "b", "exposed_ports": [], "allow_unauthenticated_access": false}"#).unwrap();
        let right = Change {
            name: Some("b".to_owned()),
            exposed_ports: Some(vec![]),
            allow_unauthenticated_access: Some(false),
        };
        assert_eq!(all, right);
        for (body, status, part) in [
            (r#"{"resources": {"cpus": 2}}"#, 501, "`resources`"),
            (r#"{"network": {"allow_internet_access": true}}"#, 501, "`network`"),
            (r#"{"network": null}"#, 501, "`network`"),
            (r#"{"auto_resume": false}"#, 501, "`auto_resume`"),
            (r#"{"name": false}"#, 400, "`name`"),
            (r#"{"exposed_ports": [9501]}"#, 400, "`exposed_ports`"),
        ] {
            let error = change(body).unwrap_err();
            assert!(error.status() == status && error.to_string().contains(part), "{body}: {error}");
        }
    }

    #[test]
    fn only_file_systems_can_be_kept() {
        let check = |body: &str| json::parse::<SnapshotBody>(body.as_bytes()).and_then(|body| body.check());
        assert!(check("{}").is_ok() && check(r#"{"snapshot_type": "filesystem"}"#).is_ok());
        for body in [r#"{"snapshot_type": "memory"}"#, r#"{"snapshot_type": "full"}"#, r#"{"snapshot_type": 1}"#] {
            let error = check(body).unwrap_err();
            assert!(error.status() == 400 && error.to_string().starts_with("`snapshot_type`"), "{error}");
        }
    }
}
