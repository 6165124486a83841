//! The history of a volume, point by point: what `find` and `stats` ask, and which names are meant.
//!
//! One tree is carried from point to point, and after each the visitor is told what the point touched. So a question
//! over thousands of points costs one replay of their operations, not a tree for each, and no content is read. It runs beside a
//! receiver that goes on: points that come meanwhile are not looked at, and those that are dropped meanwhile are left out.

mod find;
mod names;
mod pattern;
mod usage;
mod walk;
mod wire;

pub use find::{Found, Query, What, find};
pub use names::{Named, each_name};
pub use pattern::{PatternError, Patterns};
pub use usage::{Usage, usage, usage_of_all};
pub use walk::{Touched, Visit, walk};
