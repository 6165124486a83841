//! The receiving side: what is durable, and what can be made of it.

mod catalogue;
pub mod index;
pub mod limits;
pub mod log;
pub mod reconcile;
pub mod store;
