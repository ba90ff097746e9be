//! Starts the threads that work for the supervisor: what they have to say becomes a message to it.

use std::io;

use super::mailbox::MessageSender;
use super::message::Message;
use super::resolver::Resolver;
use crate::logs::LogStore;
use crate::output::Output;
use crate::trees::Trees;

/// The output thread and the log writer.
pub(super) fn output(messages: &MessageSender) -> io::Result<Output> {
    let (to_self, died) = (messages.clone(), messages.clone());
    Output::start(
        move |run, notice| to_self.send(Message::Output(run, notice)),
        move |thread| died.send(Message::ThreadDied(thread)),
    )
}

/// Has the log writer report of which units output was dropped or could not be kept.
pub(super) fn report_truncation(logs: &LogStore, messages: &MessageSender) {
    let to_self = messages.clone();
    logs.set_on_truncation(move |unit| to_self.send(Message::Truncated(unit)));
}

/// The thread that signals trees.
pub(super) fn trees(messages: &MessageSender) -> io::Result<Trees> {
    let (to_self, died) = (messages.clone(), messages.clone());
    Trees::start(move |report| to_self.send(Message::Trees(report)), move || died.send(Message::ThreadDied("trees")))
}

/// The thread that looks up users.
pub(super) fn resolver(messages: &MessageSender) -> io::Result<Resolver> {
    let (to_self, died) = (messages.clone(), messages.clone());
    Resolver::start(
        move |answer| to_self.send(Message::UserResolved(answer)),
        move || died.send(Message::ThreadDied("users")),
    )
}
