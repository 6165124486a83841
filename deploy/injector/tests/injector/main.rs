//! The injector's decision from outside: recorded reviews, pods of many shapes, files, and what the cluster would say.
#![allow(clippy::unwrap_used)]

mod files;
mod identities;
mod pod_security;
mod recorded;
mod restore;
mod rules;
mod schema;
mod shapes;
mod world;
