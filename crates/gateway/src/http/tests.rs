//! The interface as a client sees it, over real shards.

mod bulk;
mod looking;
mod resources;
mod statements;
