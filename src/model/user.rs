//! [`UserSpec`]: the user that a process runs as, as it is requested.

use crate::error::SpecError;

/// The user that a process runs as, before any look-up in `/etc/passwd`.
///
/// It can be parsed from `name`, `uid` or `uid:gid`.
///
/// ```
/// use tl_supervisor::UserSpec;
///
/// assert_eq!("root".parse(), Ok(UserSpec::Name { name: "root".to_owned(), gid: None }));
/// assert_eq!("1000:100".parse(), Ok(UserSpec::Uid { uid: 1000, gid: Some(100) }));
/// assert_eq!(UserSpec::from(1000), UserSpec::Uid { uid: 1000, gid: None });
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UserSpec {
    /// A name in `/etc/passwd`.
    Name {
        /// The name.
        name: String,
        /// A group id that replaces all groups of the user; None for the groups in `/etc/passwd` and `/etc/group`.
        gid: Option<u32>,
    },
    /// A user id. It need not have an entry in `/etc/passwd`.
    Uid {
        /// The user id.
        uid: u32,
        /// A group id that replaces all groups of the user; None for the groups in `/etc/passwd` and `/etc/group`.
        gid: Option<u32>,
    },
}

/// The id that setresuid(2) and chown(2) read as "do not change"; no user or group can have it.
pub(crate) const NO_ID: u32 = u32::MAX;

impl UserSpec {
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        let (uid, gid) = match self {
            UserSpec::Name { name, .. } if name.is_empty() || name.contains([':', '\0', '\n']) => {
                return Err(SpecError::new("user", "must be a name, a UID, `uid:gid` or an object with one of them"));
            }
            UserSpec::Name { gid, .. } => (None, *gid),
            UserSpec::Uid { uid, gid } => (Some(*uid), *gid),
        };
        match uid == Some(NO_ID) || gid == Some(NO_ID) {
            true => Err(SpecError::new("user", "must not have the id 4294967295")),
            false => Ok(()),
        }
    }
}

impl From<u32> for UserSpec {
    fn from(uid: u32) -> UserSpec {
        UserSpec::Uid { uid, gid: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_no_user_can_have_are_refused() {
        let name = |name: &str, gid| UserSpec::Name { name: name.to_owned(), gid };
        assert_eq!(name("root", Some(0)).validate(), Ok(()));
        assert_eq!(UserSpec::from(0).validate(), Ok(()));
        for wrong in [name("", None), name("a:b", None), name("root", Some(NO_ID)), UserSpec::from(NO_ID)] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
    }
}
