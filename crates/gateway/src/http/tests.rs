//! The interface as a client sees it, over real shards.

mod bulk;
mod resources;
mod sessions;
mod spread;
mod statements;
