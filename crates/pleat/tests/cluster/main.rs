//! Whole clusters: real processes, real files, real connections on loopback, asked over HTTP as a user would.

mod bad_input;
mod faults;
mod flights_test;
mod growth;
mod harness;
mod reference;
mod scale_out;
mod snapshots;
mod statements;
mod transactions;
