//! The interface as a client sees it, over real shards.

mod bulk;
mod gathers;
mod looking;
mod place;
mod rebalance;
mod references;
mod resources;
mod sessions;
mod spread;
mod statements;
mod stepwise;
mod triggers;
mod users;
mod views;
