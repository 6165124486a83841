//! The receiver from outside: real QUIC on loopback, real certificates, a real store, peers driven by hand.
#![allow(clippy::unwrap_used)]

mod configuration;
mod damage;
mod harness;
mod latency;
mod operators;
mod patience;
mod refusals;
mod sessions;
