//! Retention: which recovery points stay, as a pure function of the points, the policy and the time.
//!
//! **The result does not depend on how often it is asked for.** Time is cut into buckets that are aligned to 1970 and nest (every
//! step divides the next one). A bucket is *ripe* once all of it is older than the limit of the tier before; ripe buckets
//! only become more, and a ripe bucket keeps its best point and no other. The best point of a bucket is the best of
//! every smaller bucket it is in, so no earlier thinning can have dropped it, whenever it ran and whatever came since: thinning
//! every second and thinning once a month leave the same set. The price: a point may live one step longer than its
//! tier says, never shorter.
//!
//! What an age is counted from is the time at which the receiver took a point in, by the receiver's own clock: the clock of a
//! source that is wrong must not make anything old.

mod choose;
mod merge;
mod policy;
mod relieve;

pub use choose::{Candidate, Verdict, choose};
pub use merge::Touched;
pub use policy::{DEFAULT, Policy, PolicyError, Tier};
pub use relieve::relieve;
