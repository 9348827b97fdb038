//! Whole clusters: real processes, real files, real connections on loopback, asked over HTTP as a user would.

mod bad_input;
mod client;
mod disk;
mod export;
mod faults;
mod flights_test;
mod generated;
mod growth;
mod harness;
mod killed_at_every_step;
mod moving;
mod place;
mod rebuild;
mod reference;
mod scale_out;
mod scripts;
mod snapshots;
mod sqlite;
mod statements;
mod throughput;
mod transactions;
