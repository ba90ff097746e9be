//! An answer that is on its way from another thread.
//!
//! The one who asks either blocks, or polls its own [`Waker`] beside a socket and looks with [`Pending::try_take`].

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::error::Error;
use tl_os::poll::Waker;

/// The asking end: an answer, or the reason why there is none.
#[derive(Debug)]
pub struct Pending<T>(Receiver<Result<T, Error>>);

/// The answering end. Dropped without an answer it answers with [`Error::Internal`].
#[derive(Debug)]
pub struct ReplySender<T> {
    answer: Option<Sender<Result<T, Error>>>,
    waker: Option<Arc<Waker>>,
}

/// Both ends. `waker` is woken when the answer is there.
pub fn pending<T>(waker: Option<Arc<Waker>>) -> (ReplySender<T>, Pending<T>) {
    let (answer, receiver) = bounded(1);
    (ReplySender { answer: Some(answer), waker }, Pending(receiver))
}

impl<T> ReplySender<T> {
    /// Gives the answer. Nobody waiting any more is no error. Never blocks.
    pub fn send(mut self, answer: Result<T, Error>) {
        if let Some(sender) = self.answer.take() {
            let _ = sender.try_send(answer);
        }
    }
}

impl<T> Drop for ReplySender<T> {
    fn drop(&mut self) {
        // The sender goes first, so that whoever is woken sees that there will be no answer.
        self.answer = None;
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

impl<T> Pending<T> {
    /// Blocks until the answer is there.
    ///
    /// # Errors
    /// The answer's own, or [`Error::Internal`] when the answering thread has died.
    pub fn wait(self) -> Result<T, Error> {
        self.0.recv().unwrap_or_else(|_| Err(dead()))
    }

    /// To wait for it among other things; disconnected where there will be no answer.
    pub fn receiver(&self) -> &Receiver<Result<T, Error>> {
        &self.0
    }

    /// The answer, if it is there.
    pub fn try_take(&self) -> Option<Result<T, Error>> {
        match self.0.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(dead())),
        }
    }
}

fn dead() -> Error {
    Error::Internal("the thread that was asked has ended".to_owned())
}
