//! Waiting until a process meets a condition: [`Handle::wait_for`], [`Handle::watch_condition`], [`ConditionWatch`].

use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::handle::Handle;
use super::replies::Started;
use crate::error::{Error, SpecError};
use crate::events::{EventFilter, EventItem, EventKind, EventStart, Events};
use crate::logs::{EndWatch, LineProgress, LineWatch};
use crate::model::{Condition, HealthStatus, Met, PortQuery, ProcessInfo, Target, Waited};
use crate::pending::parker::Parker;
use crate::pending::wake;
use crate::ports::PortWatch;

/// A wait for a condition that [`Handle::watch_condition`] has begun. Dropping it ends the wait.
#[must_use = "dropping it ends the wait"]
pub struct ConditionWatch {
    handle: Handle,
    process: Started,
    watched: Watched,
    waker: Waker,
    again: Option<Instant>,
    _end: EndWatch,
}

/// What is watched for the condition, in addition to the end of the process.
enum Watched {
    End,
    Health(Events),
    Line(Box<LineWatch>),
    Port(PortWatch),
}

impl fmt::Debug for ConditionWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConditionWatch").field("process", &self.process.info).finish_non_exhaustive()
    }
}

impl Handle {
    /// Blocks until the process meets the condition, until it has ended (a managed one: until it is stopped), or until
    /// `timeout` has passed; None waits for any time.
    ///
    /// A line counts whenever it was written, if the log has kept it; one without a newline at its end counts after
    /// 100 ms in which nothing is added to it, up to a length of 16 KiB.
    ///
    /// # Errors
    /// Those of [`watch_condition`](Handle::watch_condition), and those of [`ConditionWatch::try_take`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use tl_supervisor::{Condition, LineQuery, Met, ProcessSpec, Supervisor, Target, UserSpec};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
    /// let handle = supervisor.handle();
    /// let server = handle.start(ProcessSpec::command("sh").args(["-c", "echo ready; sleep 60"]).build()?)?;
    /// let condition = Condition::Line(LineQuery::new("ready")?);
    /// let waited = handle.wait_for(&Target::Unit(server.handle), &condition, Some(Duration::from_secs(30)))?;
    /// assert_eq!(waited.met, Some(Met::Line("ready".to_owned())));
    /// # handle.kill(&Target::Unit(server.handle))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_for(&self, target: &Target, condition: &Condition, timeout: Option<Duration>) -> Result<Waited, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let parker = Arc::new(Parker::default());
        let mut watch = self.watch_condition(target, condition, Waker::from(Arc::clone(&parker)))?;
        loop {
            let met = watch.try_take();
            let is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if met.is_some() || is_over {
                return watch.finish(met.transpose()?.flatten());
            }
            parker.park([deadline, watch.again()].into_iter().flatten().min());
        }
    }

    /// Begins to wait until a process meets a condition, which may be met already. `waker` is woken when
    /// [`ConditionWatch::try_take`] may return a result; it must not block.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Invalid`] if the condition is [`Condition::Healthy`] and the process has no health
    /// check, or if the port is 0; those of [`watch_port`](Handle::watch_port).
    pub fn watch_condition(
        &self,
        target: &Target,
        condition: &Condition,
        waker: Waker,
    ) -> Result<ConditionWatch, Error> {
        let process = self.look_up(target)?;
        let unit = process.info.handle;
        let watched = match condition {
            Condition::End => Watched::End,
            Condition::Healthy => {
                let has_check = |info: &ProcessInfo| info.managed.as_ref().is_some_and(|m| m.health_check.is_some());
                if !has_check(&process.info) {
                    let problem = "must not be `healthy` for a process that has no health check";
                    return Err(SpecError::new("for", problem).into());
                }
                let filter = EventFilter { handle: Some(unit), ..EventFilter::default() };
                Watched::Health(self.events(EventStart::Now, filter, waker.clone()))
            }
            Condition::Line(query) => Watched::Line(Box::new(LineWatch::new(&process.log, query, waker.clone()))),
            Condition::Port(port) => {
                Watched::Port(self.watch_port(PortQuery::new(*port)?.in_tree_of(unit), waker.clone())?)
            }
        };
        let end = process.log.watch_end(waker.clone());
        // The state from before the subscription is not in any event.
        let process = if matches!(watched, Watched::Health(_)) { self.look_up(&Target::Unit(unit))? } else { process };
        Ok(ConditionWatch { handle: self.clone(), process, watched, waker, again: None, _end: end })
    }
}

impl ConditionWatch {
    /// How the condition was met, or `Some(Ok(None))` if the process has ended without that. None if it may still be met:
    /// call this again when the waker is woken, and at the time that [`again`](ConditionWatch::again) returns.
    ///
    /// # Errors
    /// [`Error::OutOfResources`] if the log cannot be read now; [`Error::ShuttingDown`] if a port is waited for.
    pub fn try_take(&mut self) -> Option<Result<Option<Met>, Error>> {
        self.again = None;
        // Looked at first, so that what the process has done before its end counts.
        let has_ended = self.process.log.ended().is_some();
        let met = match &mut self.watched {
            Watched::End => has_ended.then_some(Met::End),
            Watched::Health(events) => is_healthy(&self.handle, &self.process.info, events).then_some(Met::Healthy),
            Watched::Port(watch) => match watch.try_take() {
                Some(Ok(port)) => Some(Met::Port(port)),
                Some(Err(_)) if has_ended => None,
                Some(Err(error)) => return Some(Err(error)),
                // A server may open its port, fork and exit, all between two looks of the thread.
                None if has_ended => watch.look().map(Met::Port),
                None => None,
            },
            Watched::Line(watch) => match watch.advance(Instant::now()) {
                Ok(LineProgress::Found(line)) => Some(Met::Line(line)),
                Ok(LineProgress::Ended) => return Some(Ok(None)),
                Ok(LineProgress::Busy) => {
                    wake(&self.waker);
                    return None;
                }
                Ok(LineProgress::Waiting(again)) => {
                    self.again = again;
                    return None;
                }
                Err(error) => return Some(Err(Error::from_io("reading the log", &error))),
            },
        };
        (met.is_some() || has_ended).then_some(Ok(met))
    }

    /// When to call [`try_take`](ConditionWatch::try_take) again although the waker is not woken: an unfinished line may
    /// count as a line then.
    pub fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Ends the wait, with what [`try_take`](ConditionWatch::try_take) has returned.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the process was forgotten meanwhile.
    pub fn finish(self, met: Option<Met>) -> Result<Waited, Error> {
        let Started { info, log, .. } = self.process;
        Ok(Waited { met, process: self.handle.after_wait(info, log.ended())? })
    }
}

/// Whether the process was healthy when the wait began, or has become so.
fn is_healthy(handle: &Handle, begin: &ProcessInfo, events: &mut Events) -> bool {
    let is_healthy = |info: &ProcessInfo| {
        info.managed.as_ref().is_some_and(|managed| managed.health_status == HealthStatus::Healthy)
    };
    if is_healthy(begin) {
        return true;
    }
    while let Some(item) = events.try_next() {
        let has_become = match item {
            EventItem::Event(event) => {
                matches!(event.kind, EventKind::ProcessHealth { status: HealthStatus::Healthy, .. })
            }
            EventItem::Gap { .. } => handle.get(&Target::Unit(begin.handle)).is_ok_and(|info| is_healthy(&info)),
        };
        if has_become {
            return true;
        }
    }
    false
}
