//! Whole clusters: real processes, real files, real connections on loopback, asked over HTTP as a user would.

mod bad_input;
mod document_004;
mod faults;
mod flights_test;
mod harness;
mod reference;
mod scale_out;
mod snapshots;
mod statements;
