//! The limits of a run: which of them can be set here, and with which defaults.

use std::sync::Arc;

use tl_os::cgroup::{Controllers, Leaf, LeafLimits};
use tl_os::spawn::SpawnError;
use tl_os::{machine, resource_limits};

use crate::error::{Error, SpecError};
use crate::model::{Limits, ProcessSpec};

/// The names of all limits that a cgroup sets, and the controller of each.
const CONTROLLERS: [(&str, &str); 5] = [
    ("memory_bytes", "memory"),
    ("memory_high_bytes", "memory"),
    ("cpus", "cpu"),
    ("cpu_weight", "cpu"),
    ("processes", "pids"),
];

/// Limits of processes that do not say.
#[derive(Debug, Default)]
pub(super) struct DefaultLimits {
    limits: Limits,
    /// Those that were reported as left out at the last start.
    reported: Vec<&'static str>,
}

/// Checks that no limit is beyond what the machine has, or what this process may set.
///
/// # Errors
/// [`SpecError`] about the first one.
pub(super) fn check(spec: &ProcessSpec) -> Result<(), SpecError> {
    spec.limits.as_deref().map_or(Ok(()), check_machine)
}

fn check_machine(limits: &Limits) -> Result<(), SpecError> {
    let at_most = |field: &str, limit: Option<u64>, most: fn() -> u64, of: &str| match limit {
        Some(limit) if limit > most() => {
            Err(SpecError::new(format!("limits.{field}"), format!("must be at most {}, {of}", most())))
        }
        _ => Ok(()),
    };
    let of_memory = "the memory of the machine";
    at_most("memory_bytes", limits.memory_bytes, machine::memory, of_memory)?;
    at_most("memory_high_bytes", limits.memory_high_bytes, machine::memory, of_memory)?;
    at_most("cpus", limits.cpus.map(|cpus| cpus.whole()), machine::cpus, "the number of CPUs of the machine")?;
    at_most("processes", limits.processes, machine::tasks, "the number of processes that the machine can have")?;
    let of_files = "the highest limit that the daemon can set";
    at_most("open_files", limits.open_files, resource_limits::highest_nofile, of_files)
}

impl DefaultLimits {
    /// Those of `limits` that the machine has. Returns a warning about each of the others.
    pub(super) fn new(limits: Limits) -> (DefaultLimits, Vec<String>) {
        let (mut usable, mut warnings) = (Limits::default(), Vec::new());
        for name in Limits::NAMES {
            let one = limits.only(name);
            match one.validate().and_then(|()| check_machine(&one)) {
                Ok(()) => usable = usable.or(&one),
                Err(error) => warnings.push(format!("a default limit is left out: {error}")),
            }
        }
        (DefaultLimits { limits: usable, reported: Vec::new() }, warnings)
    }

    /// The number of descriptors for a process with these limits.
    pub(super) fn open_files(&self, limits: Option<&Arc<Limits>>) -> Option<u64> {
        limits.and_then(|limits| limits.open_files).or(self.limits.open_files)
    }

    /// The limits of a run that requests `requested`, with the default ones that these controllers can set.
    ///
    /// # Errors
    /// [`Error::LimitNotAvailable`] if they cannot set a requested one.
    pub(super) fn apply(
        &self,
        requested: Option<&Arc<Limits>>,
        has: Controllers,
    ) -> Result<Option<Arc<Limits>>, Error> {
        if let Some(requested) = requested
            && let Some((limit, controller)) = missing(requested, has).next()
        {
            return Err(Error::LimitNotAvailable { limit, controller });
        }
        if self.limits.is_empty() {
            return Ok(requested.cloned());
        }
        let available = CONTROLLERS.iter().filter(|(_, controller)| is_enabled(has, controller)).map(|(name, _)| *name);
        let all = requested.map_or(Limits::default(), |requested| **requested);
        let all = available.chain(["open_files"]).fold(all, |all, name| all.or(&self.limits.only(name)));
        Ok((!all.is_empty()).then(|| Arc::new(all)))
    }

    /// These limits, after those that these controllers cannot set were logged.
    pub(super) fn reported(mut self, has: Controllers) -> DefaultLimits {
        self.report(has);
        self
    }

    /// Logs which default limits these controllers cannot set, if these are others than before.
    pub(super) fn report(&mut self, has: Controllers) {
        let left_out: Vec<&str> = missing(&self.limits, has).map(|(name, _)| name).collect();
        if left_out != self.reported && !left_out.is_empty() {
            log::warn!("default limits are left out, because no cgroup can set them: {}", left_out.join(", "));
        }
        self.reported = left_out;
    }
}

fn is_enabled(has: Controllers, controller: &str) -> bool {
    match controller {
        "memory" => has.memory,
        "cpu" => has.cpu,
        _ => has.pids,
    }
}

/// The limits that need a controller which is not enabled, and that controller.
fn missing(limits: &Limits, has: Controllers) -> impl Iterator<Item = (&'static str, &'static str)> {
    let limits = *limits;
    let is_missing =
        move |(name, controller): &(&str, &str)| !limits.only(name).is_empty() && !is_enabled(has, controller);
    CONTROLLERS.into_iter().filter(is_missing)
}

/// Sets the limits of a run in its leaf, which has no process yet. Returns them, or why the run cannot start.
///
/// # Errors
/// [`SpawnError::Cgroup`] if the leaf has lost a controller or is gone.
pub(super) fn prepare(
    defaults: &mut DefaultLimits,
    requested: Option<&Arc<Limits>>,
    leaf: Option<&Leaf>,
) -> Result<Result<Option<Arc<Limits>>, Error>, SpawnError> {
    let has = leaf.map_or(Controllers::default(), Leaf::controllers);
    if !defaults.limits.is_empty() {
        defaults.report(has);
    }
    let limits = match (defaults.apply(requested, has), leaf) {
        (Ok(Some(limits)), Some(leaf)) => set(leaf, &limits)?.map(|()| Some(limits)),
        (limits, _) => limits,
    };
    Ok(limits)
}

/// Sets the limits of a leaf.
fn set(leaf: &Leaf, limits: &Limits) -> Result<Result<(), Error>, SpawnError> {
    let of_leaf = LeafLimits {
        memory_max: limits.memory_bytes,
        memory_high: limits.memory_high_bytes,
        cpu_quota: limits.cpus.map(|cpus| cpus.quota()),
        cpu_weight: limits.cpu_weight,
        pids_max: limits.processes,
    };
    match leaf.set_limits(&of_leaf) {
        Ok(()) => Ok(Ok(())),
        Err(failure) if failure.is_missing() => Err(SpawnError::Cgroup(failure.error)),
        Err(failure) => Ok(Err(Error::from_io(&format!("setting {} of a cgroup", failure.file), &failure.error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Cpus;

    const ALL: Controllers = Controllers { cpu: true, memory: true, pids: true };
    const NONE: Controllers = Controllers { cpu: false, memory: false, pids: false };

    fn limits(set: impl FnOnce(&mut Limits)) -> Limits {
        let mut limits = Limits::default();
        set(&mut limits);
        limits
    }

    #[test]
    fn a_requested_limit_without_its_controller_is_refused_by_its_name() {
        let defaults = DefaultLimits::default();
        for (requested, limit, controller) in [
            (limits(|it| it.memory_bytes = Some(1 << 20)), "memory_bytes", "memory"),
            (limits(|it| it.memory_high_bytes = Some(1 << 20)), "memory_high_bytes", "memory"),
            (limits(|it| it.cpus = Cpus::new(0.5).ok()), "cpus", "cpu"),
            (limits(|it| it.cpu_weight = Some(5)), "cpu_weight", "cpu"),
            (limits(|it| it.processes = Some(5)), "processes", "pids"),
        ] {
            let requested = Arc::new(requested);
            let refused = defaults.apply(Some(&requested), NONE);
            assert_eq!(refused, Err(Error::LimitNotAvailable { limit, controller }));
            assert_eq!(defaults.apply(Some(&requested), ALL), Ok(Some(Arc::clone(&requested))));
        }
        let files = Arc::new(limits(|it| it.open_files = Some(5)));
        assert_eq!(defaults.apply(Some(&files), NONE), Ok(Some(files)));
        assert_eq!(defaults.apply(None, NONE), Ok(None));
    }

    #[test]
    fn default_limits_apply_one_by_one_where_they_are_available() {
        let (mut defaults, warnings) = DefaultLimits::new(limits(|it| {
            it.memory_bytes = Some(1 << 20);
            it.processes = Some(7);
            it.open_files = Some(9);
        }));
        assert_eq!(warnings, Vec::<String>::new());
        let requested = Arc::new(limits(|it| it.processes = Some(3)));
        let all = defaults.apply(Some(&requested), ALL).unwrap().unwrap();
        assert_eq!((all.memory_bytes, all.processes, all.open_files), (Some(1 << 20), Some(3), Some(9)));
        let few = defaults.apply(None, NONE).unwrap().unwrap();
        assert_eq!(*few, limits(|it| it.open_files = Some(9)));
        assert_eq!(defaults.open_files(Some(&requested)), Some(9));
        defaults.report(NONE);
        assert_eq!(defaults.reported, ["memory_bytes", "processes"]);
    }

    #[test]
    fn a_limit_beyond_the_machine_is_refused_and_a_default_one_left_out_with_a_warning() {
        for (beyond, field) in [
            (limits(|it| it.memory_bytes = Some(1 << 60)), "limits.memory_bytes"),
            (limits(|it| it.memory_high_bytes = Some(1 << 60)), "limits.memory_high_bytes"),
            (limits(|it| it.cpus = Cpus::new(40_000.0).ok()), "limits.cpus"),
            (limits(|it| it.processes = Some(1 << 40)), "limits.processes"),
            (limits(|it| it.open_files = Some(1 << 40)), "limits.open_files"),
        ] {
            assert_eq!(check_machine(&beyond).unwrap_err().field, field);
            let (defaults, warnings) = DefaultLimits::new(beyond);
            assert!(defaults.limits.is_empty() && warnings.len() == 1 && warnings[0].contains(field), "{warnings:?}");
        }
        let most = limits(|it| it.cpus = Cpus::new(machine::cpus() as f64).ok());
        assert_eq!(check_machine(&most), Ok(()));
    }
}
