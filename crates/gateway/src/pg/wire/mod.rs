//! The messages of the protocol: bytes in, values out, and back.
//!
//! What the messages of clients are, and how far nothing that they declare is believed, is [`pleat_engine::postgres::wire`]'s, because
//! Pleat is a client of servers itself. Here are
//!
//! - [`read`]: messages from a socket, within limits of size and time.
//! - [`write`]: what the server sends.

pub mod read;
pub mod write;

pub use pleat_engine::postgres::wire::Broken;
pub use pleat_engine::postgres::wire::frontend::{Bind, First, Message, Target, may_be_large, sasl_initial};
pub use read::Reader;
pub use write::Out;
