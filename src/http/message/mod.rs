//! A request on its way in, and an answer on its way out.

pub(in crate::http) mod body;
mod chunked;
pub(in crate::http) mod conditions;
pub(in crate::http) mod head;
pub(in crate::http) mod range;
pub(in crate::http) mod request;
pub(in crate::http) mod response;
pub(in crate::http) mod response_head;
