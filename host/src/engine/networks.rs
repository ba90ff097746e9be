//! Calls for networks.

use serde_json::json;

use super::client::{Call, SLOW};
use super::{Engine, EngineError, wire};

impl Engine {
    /// Makes a network unless there is one with this name. From an internal one nothing outside can be reached: if one is
    /// wanted and that of the name is not, the result is `Conflict`.
    pub(crate) fn ensure_network(&self, name: &str, internal: bool) -> Result<(), EngineError> {
        match self.check_network(name, internal) {
            Ok(()) => return Ok(()),
            Err(EngineError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let body = json!({ "Name": name, "Internal": internal, "CheckDuplicate": true });
        match self.bytes(&Call::new("POST", "/networks/create").body(body).limit(SLOW)) {
            // Another thread was faster. Podman before 5 answers 500 and not 409.
            Err(error @ (EngineError::Conflict(_) | EngineError::Refused { .. })) => {
                self.check_network(name, internal).map_err(|_| error)
            }
            other => other.map(drop),
        }
    }

    fn check_network(&self, name: &str, internal: bool) -> Result<(), EngineError> {
        let found: wire::InspectedNetwork = self.json(&Call::new("GET", format!("/networks/{name}")))?;
        if internal && !found.internal {
            let message = format!("the network {name:?} exists already, and it is not internal");
            return Err(EngineError::Conflict(message));
        }
        Ok(())
    }

    /// Removes a network. It is no error if it is gone.
    pub(crate) fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        match self.bytes(&Call::new("DELETE", format!("/networks/{name}")).limit(SLOW)) {
            Ok(_) | Err(EngineError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
