//! Changes the name, the exposed ports and the access of a sandbox.

use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Change, Record};
use crate::sandbox::{Sandboxes, name};

impl Sandboxes {
    /// Changes a sandbox, after the operation on it that is going on.
    pub(crate) fn update(&self, namespace: &str, id_or_name: &str, change: Change) -> Result<Record, SandboxError> {
        if let Some(name) = &change.name {
            name::check(name)?;
        }
        let mut operation = self.begin(namespace, id_or_name, None)?;
        if let Some(name) = &change.name {
            operation.reserve_name(name)?;
        }
        operation.save(|record| {
            let spec = &mut record.spec;
            spec.name = change.name.or(spec.name.take());
            spec.exposed_ports = change.exposed_ports.unwrap_or(std::mem::take(&mut spec.exposed_ports));
            spec.allow_unauthenticated_access =
                change.allow_unauthenticated_access.unwrap_or(spec.allow_unauthenticated_access);
        })?;
        Ok(operation.record().clone())
    }
}
