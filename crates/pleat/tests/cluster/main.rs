//! Whole clusters: real processes, real files, real connections on loopback, asked over HTTP as a user would.

mod bad_input;
mod client;
mod export;
mod fault_run;
mod faults;
mod flights_test;
mod generated;
mod growth;
mod harness;
mod killed_at_every_step;
mod moves_under_load;
mod moving;
mod operations_killed_at_every_step;
mod place;
mod rebalance;
mod rebuild;
mod reference;
mod scale_out;
mod scaling;
mod scripts;
mod snapshots;
mod sqlite;
mod statements;
mod throughput;
mod transactions;
mod workload;
