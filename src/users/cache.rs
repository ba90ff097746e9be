//! The users that were looked up before, with the state of the files that they were found in.
//!
//! The result is kept, not the files: `/etc/passwd` can have 16 MiB. Whether the files are unchanged is for the caller to
//! find out, without the lock of the cache, because the disk can block it for ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tl_os::file_version::FileVersion;

use super::passwd::Identity;
use crate::model::UserSpec;

/// Maximum memory of the cache in bytes: enough for about 200 users.
const CAPACITY: usize = 64 << 10;

/// The state of a file: its version, or None if it does not exist.
pub type State = Option<FileVersion>;

/// The files in which a user was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The state of `/etc/passwd`.
    pub passwd: State,
    /// The state of `/etc/group`; None if it was not needed.
    pub group: Option<State>,
}

/// A user that was looked up.
#[derive(Debug)]
pub struct Known {
    /// The files in which it was found.
    pub sources: Sources,
    /// The user.
    pub identity: Arc<Identity>,
}

impl Known {
    /// Approximate memory that it takes with its key, in bytes.
    fn weight(&self, spec: &UserSpec) -> usize {
        // The entry of the map, and the overhead of six heap blocks.
        const FIXED: usize = size_of::<(UserSpec, Arc<Known>)>() + size_of::<Known>() + 6 * 16;
        let name = match spec {
            UserSpec::Name { name, .. } => name.len(),
            UserSpec::Uid { .. } => 0,
        };
        let Identity { groups, home, shell, name: login, .. } = &*self.identity;
        FIXED + name + groups.len() * size_of::<u32>() + home.len() + shell.len() + login.len()
    }
}

#[derive(Debug, Default)]
struct Users {
    known: HashMap<UserSpec, Arc<Known>>,
    weight: usize,
}

/// The users that were looked up. When there is no room for another one, all are forgotten.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Users>);

impl Cache {
    /// The user that was last looked up by `spec`.
    pub fn get(&self, spec: &UserSpec) -> Option<Arc<Known>> {
        self.lock().known.get(spec).cloned()
    }

    /// Remembers a user.
    pub fn insert(&self, spec: &UserSpec, sources: Sources, identity: &Arc<Identity>) {
        let known = Known { sources, identity: Arc::clone(identity) };
        let weight = known.weight(spec);
        self.remove(spec);
        if weight > CAPACITY {
            return;
        }
        let mut users = self.lock();
        if users.weight + weight > CAPACITY {
            *users = Users::default();
        }
        users.weight += weight;
        if let Some(old) = users.known.insert(spec.clone(), Arc::new(known)) {
            // Another thread has looked up the same user at the same time.
            users.weight -= old.weight(spec);
        }
    }

    /// Forgets a user.
    pub fn remove(&self, spec: &UserSpec) {
        let mut users = self.lock();
        if let Some(old) = users.known.remove(spec) {
            users.weight -= old.weight(spec);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Users> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: Sources = Sources { passwd: None, group: None };

    fn identity(home: usize) -> Arc<Identity> {
        let home = "h".repeat(home);
        Arc::new(Identity { uid: 1, gid: 1, groups: Vec::new(), home, shell: String::new(), name: String::new() })
    }

    #[test]
    fn the_memory_of_the_cache_is_limited() {
        let cache = Cache::default();
        for uid in 0..10_000 {
            let spec = UserSpec::Uid { uid, gid: None };
            cache.insert(&spec, SOURCES, &identity(1_000));
            assert!(cache.get(&spec).is_some());
            let users = cache.lock();
            let weight: usize = users.known.iter().map(|(spec, known)| known.weight(spec)).sum();
            assert!(weight == users.weight && weight <= CAPACITY, "{weight} of {}", users.weight);
        }
        let large = UserSpec::Uid { uid: 0, gid: None };
        cache.insert(&large, SOURCES, &identity(CAPACITY));
        assert!(cache.get(&large).is_none());
        assert!(!cache.lock().known.is_empty(), "a user that does not fit does not displace others");
    }

    #[test]
    fn a_user_is_replaced_and_forgotten() {
        let cache = Cache::default();
        let spec = UserSpec::Name { name: "app".into(), gid: None };
        for home in [10, 20, 5] {
            cache.insert(&spec, SOURCES, &identity(home));
            assert_eq!(cache.get(&spec).map(|known| known.identity.home.len()), Some(home));
        }
        assert_eq!(cache.lock().known.len(), 1);
        cache.remove(&spec);
        assert!(cache.get(&spec).is_none() && cache.lock().weight == 0);
    }
}
