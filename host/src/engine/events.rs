//! The stream of what happens to containers.

use std::io::{BufRead, BufReader, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use ureq::BodyReader;

use super::client::{Call, invalid};
use super::{ContainerEvent, Engine, EngineError, wire};

/// The longest line that is read: an event has all labels of its container.
const LONGEST_LINE: u64 = 1 << 20;

/// Events as they happen. After an error there is no other item.
pub(crate) struct Events {
    engine: Engine,
    call: Call<'static>,
    state: State,
}

enum State {
    NotConnected,
    Connected(BufReader<BodyReader<'static>>),
    Ended,
}

impl Engine {
    /// What happens to containers with this label, from `since` on. The request is sent by the first `next`, which
    /// returns with the first event: Podman sends nothing, not even the head of its answer, before that. To miss
    /// nothing, take the time, look at all containers, and then call this with that time.
    pub(crate) fn events(&self, label: (&str, &str), since: SystemTime) -> Events {
        let (name, value) = label;
        let filters = json!({ "type": ["container"], "label": [format!("{name}={value}")] });
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let call = Call::new("GET", "/events")
            .query("stream", "true")
            .query("since", since.to_string())
            .query("filters", filters.to_string());
        Events { engine: self.clone(), call, state: State::NotConnected }
    }
}

impl Events {
    fn read(&mut self) -> Result<ContainerEvent, EngineError> {
        loop {
            match &mut self.state {
                State::NotConnected => {
                    let body = self.engine.stream(&self.call)?;
                    let reader = body.into_with_config().limit(u64::MAX).reader();
                    self.state = State::Connected(BufReader::new(reader));
                }
                State::Connected(reader) => {
                    let mut line = Vec::new();
                    let read = reader.take(LONGEST_LINE).read_until(b'\n', &mut line);
                    read.map_err(|error| self.engine.failure(&self.call, ureq::Error::from(error)))?;
                    if line.is_empty() {
                        let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                        return Err(self.engine.failure(&self.call, error.into()));
                    }
                    if !line.trim_ascii().is_empty() {
                        let event = serde_json::from_slice::<wire::Event>(&line);
                        return event.map(ContainerEvent::from).map_err(|error| invalid(&self.call, &error));
                    }
                }
                State::Ended => return Err(invalid(&self.call, &"it has ended")),
            }
        }
    }
}

impl Iterator for Events {
    type Item = Result<ContainerEvent, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if matches!(self.state, State::Ended) {
            return None;
        }
        let event = self.read();
        if event.is_err() {
            self.state = State::Ended;
        }
        Some(event)
    }
}
