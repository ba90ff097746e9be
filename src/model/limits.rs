//! [`Limits`]: what a process and its tree may use.

use serde::{Serialize, Serializer};

use crate::error::SpecError;

/// CPU time of one CPU in each period of 100 ms, in microseconds.
const WHOLE: u32 = 100_000;

/// The least CPU time in each period that the kernel takes, in microseconds.
const LEAST: u32 = 1_000;

/// Greatest weight that the kernel takes.
pub(crate) const MAX_CPU_WEIGHT: u64 = 10_000;

/// Limits for each run of a process. None means no limit, or the supervisor's
/// [default](crate::Builder::default_limits).
///
/// All but `open_files` are limits for all processes of the tree together, and need a cgroup with a controller: a start
/// with a limit that is not available fails.
///
/// ```
/// use tl_supervisor::{Cpus, Limits, ProcessSpec};
///
/// let mut limits = Limits::default();
/// limits.memory_bytes = Some(256 << 20);
/// limits.cpus = Some(Cpus::new(0.5)?);
/// ProcessSpec::command("make").limits(limits).build()?;
///
/// let error = Cpus::new(0.0).unwrap_err();
/// assert_eq!(error.field, "limits.cpus");
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of memory. Beyond it, the kernel kills the whole tree.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory. Beyond it, the kernel slows the tree down and reclaims its memory.
    pub memory_high_bytes: Option<u64>,
    /// CPU time.
    pub cpus: Option<Cpus>,
    /// Share of the CPU time where others want some too: 1 to 10,000; without it, 100.
    pub cpu_weight: Option<u64>,
    /// Number of processes and threads.
    pub processes: Option<u64>,
    /// Number of descriptors that each process may have open (RLIMIT_NOFILE).
    pub open_files: Option<u64>,
}

/// A number of CPUs of which the time may be used, at least 0.01. It is kept in steps of 0.00001.
///
/// ```
/// use tl_supervisor::Cpus;
///
/// assert_eq!(Cpus::new(1.5)?.as_f64(), 1.5);
/// assert!(Cpus::new(f64::NAN).is_err() && Cpus::new(0.001).is_err());
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(u32);

impl Cpus {
    /// This number of CPUs. A number beyond that of any machine is kept as 42,949.
    ///
    /// # Errors
    /// If it is less than 0.01, or not a number.
    pub fn new(cpus: f64) -> Result<Cpus, SpecError> {
        // The conversion saturates, and takes what is not a number as 0.
        let micros = (cpus * f64::from(WHOLE)).round() as u32;
        if micros < LEAST {
            return Err(SpecError::new("limits.cpus", "must be a number of CPUs of at least 0.01"));
        }
        Ok(Cpus(micros))
    }

    /// The number.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }

    /// CPU time in each period of 100 ms, in microseconds.
    pub(crate) fn quota(self) -> u64 {
        self.0.into()
    }

    /// The least whole number of CPUs that has this time.
    pub(crate) fn whole(self) -> u64 {
        self.0.div_ceil(WHOLE).into()
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // A whole number is written as one.
        if self.0.is_multiple_of(WHOLE) { to.serialize_u32(self.0 / WHOLE) } else { to.serialize_f64(self.as_f64()) }
    }
}

impl Limits {
    /// The names of all limits, as fields of JSON have them.
    pub(crate) const NAMES: [&str; 6] =
        ["memory_bytes", "memory_high_bytes", "cpus", "cpu_weight", "processes", "open_files"];

    /// Whether there is no limit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// These limits, and those of `defaults` where these have none.
    pub(crate) fn or(self, defaults: &Limits) -> Limits {
        Limits {
            memory_bytes: self.memory_bytes.or(defaults.memory_bytes),
            memory_high_bytes: self.memory_high_bytes.or(defaults.memory_high_bytes),
            cpus: self.cpus.or(defaults.cpus),
            cpu_weight: self.cpu_weight.or(defaults.cpu_weight),
            processes: self.processes.or(defaults.processes),
            open_files: self.open_files.or(defaults.open_files),
        }
    }

    /// The limit with this name alone, as a field of JSON has it.
    pub(crate) fn only(&self, name: &str) -> Limits {
        let none = Limits::default();
        match name {
            "memory_bytes" => Limits { memory_bytes: self.memory_bytes, ..none },
            "memory_high_bytes" => Limits { memory_high_bytes: self.memory_high_bytes, ..none },
            "cpus" => Limits { cpus: self.cpus, ..none },
            "cpu_weight" => Limits { cpu_weight: self.cpu_weight, ..none },
            "processes" => Limits { processes: self.processes, ..none },
            "open_files" => Limits { open_files: self.open_files, ..none },
            _ => none,
        }
    }

    /// Checks what does not depend on the machine.
    ///
    /// # Errors
    /// [`SpecError`] about the first limit that is invalid.
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        let numbers = [
            ("limits.memory_bytes", self.memory_bytes),
            ("limits.memory_high_bytes", self.memory_high_bytes),
            ("limits.cpu_weight", self.cpu_weight),
            ("limits.processes", self.processes),
            ("limits.open_files", self.open_files),
        ];
        if let Some((field, _)) = numbers.iter().find(|(_, number)| *number == Some(0)) {
            return Err(SpecError::new(*field, "must be at least 1"));
        }
        if self.cpu_weight.is_some_and(|weight| weight > MAX_CPU_WEIGHT) {
            return Err(SpecError::new("limits.cpu_weight", format!("must be at most {MAX_CPU_WEIGHT}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_cpus_is_at_least_a_hundredth() {
        for (number, quota) in [(0.01, 1_000), (0.5, 50_000), (1.0, 100_000), (0.123_456, 12_346), (3.0, 300_000)] {
            assert_eq!(Cpus::new(number).unwrap().quota(), quota, "{number}");
        }
        for wrong in [0.0, -0.0, -1.0, 0.009, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(Cpus::new(wrong).unwrap_err().field, "limits.cpus", "{wrong}");
        }
        assert_eq!(Cpus::new(f64::INFINITY), Ok(Cpus(u32::MAX)));
        assert_eq!([0.5, 1.0, 1.00001].map(|number| Cpus::new(number).unwrap().whole()), [1, 1, 2]);
    }

    #[cfg(feature = "http")]
    #[test]
    fn whole_and_other_numbers_of_cpus_are_written_as_they_are() {
        let json = |number| serde_json::to_string(&Cpus::new(number).unwrap()).unwrap();
        assert_eq!((json(2.0), json(0.5), json(1.25)), ("2".to_owned(), "0.5".to_owned(), "1.25".to_owned()));
    }

    #[test]
    fn each_limit_falls_back_to_its_own_default() {
        let own = Limits { memory_bytes: Some(1), ..Limits::default() };
        let defaults = Limits { memory_bytes: Some(2), processes: Some(3), ..Limits::default() };
        assert_eq!(own.or(&defaults), Limits { memory_bytes: Some(1), processes: Some(3), ..Limits::default() });
        assert_eq!(Limits::default().or(&defaults), defaults);
        assert!(Limits::default().is_empty() && !own.is_empty());
    }

    #[test]
    fn a_limit_of_0_is_refused() {
        let none = Limits::default();
        for (limits, field) in [
            (Limits { memory_bytes: Some(0), ..none }, "limits.memory_bytes"),
            (Limits { memory_high_bytes: Some(0), ..none }, "limits.memory_high_bytes"),
            (Limits { cpu_weight: Some(0), ..none }, "limits.cpu_weight"),
            (Limits { cpu_weight: Some(10_001), ..none }, "limits.cpu_weight"),
            (Limits { processes: Some(0), ..none }, "limits.processes"),
            (Limits { open_files: Some(0), ..none }, "limits.open_files"),
        ] {
            assert_eq!(limits.validate().unwrap_err().field, field);
        }
        assert_eq!(none.validate(), Ok(()));
    }
}
