//! The system from outside: the built binary, real file systems, real databases, real faults.

mod archive;
mod browse;
mod configuration;
mod cost;
mod databases;
mod durability;
mod encryption;
mod failover;
mod fencing;
mod full;
mod groups;
mod harness;
mod healing;
mod identity;
mod idle;
mod image;
mod marks;
mod model;
mod moving;
mod order;
mod paths;
mod pause;
mod peers;
mod postgres;
mod roundtrip;
mod space;
