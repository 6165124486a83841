//! The receiving side: what is durable, and what can be made of it.

pub mod limits;
pub mod reconcile;
