//! Calls for images.

use std::io::Read;

use serde_json::json;

use super::client::{COPYING, Call, SLOW, invalid};
use super::containers::label_filter;
use super::{Engine, EngineError, Image, wire};

impl Engine {
    /// Makes an image of a container's file system, without its mounts, and returns the image's id. A container that runs
    /// is paused meanwhile.
    pub(crate) fn commit(
        &self,
        id: &str,
        repository: &str,
        tag: &str,
        labels: &[(String, String)],
    ) -> Result<String, EngineError> {
        let mut call = Call::new("POST", "/commit")
            .query("container", id)
            .query("repo", repository)
            .query("tag", tag)
            .query("pause", "true")
            .body(json!({}))
            .limit(COPYING);
        for (name, value) in labels {
            call = call.query("changes", format!("LABEL {name}={value}"));
        }
        Ok(self.json::<wire::Created>(&call)?.id)
    }

    /// An image by its name or id.
    pub(crate) fn image(&self, name: &str) -> Result<Image, EngineError> {
        let call = Call::new("GET", path(name, "/json")?);
        Ok(self.json::<wire::InspectedImage>(&call)?.into())
    }

    /// All images with this label. One that the engine cannot show is left out.
    pub(crate) fn images(&self, label: (&str, &str)) -> Result<Vec<Image>, EngineError> {
        let call = Call::new("GET", "/images/json").query("filters", label_filter(label));
        let mut images = Vec::new();
        for listed in self.json::<Vec<wire::ListedImage>>(&call)? {
            match self.image(&listed.id) {
                Ok(image) => images.push(image),
                // Removed meanwhile.
                Err(EngineError::NotFound(_)) => {}
                Err(error @ (EngineError::Unreachable { .. } | EngineError::TimedOut(..))) => return Err(error),
                Err(error) => log::warn!("image {} cannot be inspected: {error}", listed.id),
            }
        }
        Ok(images)
    }

    /// Gives an image another name, which another image may have had.
    pub(crate) fn tag(&self, name: &str, repository: &str, tag: &str) -> Result<(), EngineError> {
        let call = Call::new("POST", path(name, "/tag")?).query("repo", repository).query("tag", tag);
        self.bytes(&call).map(drop)
    }

    /// Removes an image by its name or id, or only that name if it has others. It is no error if it is gone, and `Conflict` if a container uses it.
    pub(crate) fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let call = Call::new("DELETE", path(name, "")?).limit(SLOW);
        match self.bytes(&call) {
            Ok(_) | Err(EngineError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes an image of a tar archive of a root file system and returns its id. The archive is streamed.
    pub(crate) fn import(&self, tar: impl Read, repository: &str, tag: &str) -> Result<String, EngineError> {
        // Podman ignores the parameter `tag`; both engines take a tag in the name.
        let name = format!("{repository}:{tag}");
        let call = Call::new("POST", "/images/create").query("fromSrc", "-").query("repo", &name).limit(COPYING);
        let answer = self.upload(&call, tar)?;
        let mut id = None;
        for progress in serde_json::Deserializer::from_slice(&answer).into_iter::<wire::Progress>() {
            let progress = progress.map_err(|error| invalid(&call, &error))?;
            if let Some(message) = progress.error {
                return Err(EngineError::Refused { status: 200, message });
            }
            id = progress.status.or(id);
        }
        id.ok_or_else(|| invalid(&call, &"it has no id"))
    }
}

/// The path of a call for one image. A client may have named it: characters that no name has would become a part of
/// the URL.
fn path(name: &str, action: &str) -> Result<String, EngineError> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-:@/".contains(&byte);
    let has_invalid_part = || name.split('/').any(|part| part.is_empty() || part.starts_with('.'));
    if !name.bytes().all(is_valid) || has_invalid_part() {
        return Err(EngineError::NotFound(format!("no such image: {name:?}")));
    }
    Ok(format!("/images/{name}{action}"))
}
