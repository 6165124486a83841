//! What an operator does: look at volumes and points, restore one, promote one.
//!
//! The same functions work on a running receiver and on the store of one that is gone ([`Access`]). They block, print
//! nothing, and report what they did as types that serialise; progress goes to a callback ([`Event`]).

mod access;
mod at;
mod branch;
mod browse;
mod clone;
mod delete;
mod donor;
mod error;
mod fill;
mod hold;
pub mod limits;
mod mount;
mod openers;
mod part;
mod plan;
mod promote;
mod rebuild;
mod rehearse;
mod report;
mod restore;
mod rollback;
mod room;
mod select;
mod status;
#[cfg(test)]
mod tests;
mod verify;
mod window;

pub use access::{Access, check_store};
pub use at::{At, AtError};
pub use branch::{Begun, BranchReport, begin_branch, branches, check_old_primary};
pub use browse::{
    CatReport, Change, ChangeKind, DiffReport, Entry, EntryKind, FindOptions, FindReport, FoundReport,
    LsReport, PathError, Span, StatsReport, VolumePath, cat, diff, find, ls, stats,
};
pub use clone::{CloneReport, clone};
pub use delete::{Deletable, DeleteReport, deletable, deletable_of, delete};
pub use error::FailoverError;
pub use fill::{Fill, Filled};
pub use hold::{HoldReport, hold, release};
pub use mount::{Hydration, MountOptions, MountReport, Mounted, Reach, Unmounted, mount};
pub use openers::{Opener, Openers, openers};
pub use part::Part;
pub use plan::{CapReport, PlanReport, RuleReport, SizesReport, VolumePlanReport, plan};
pub use promote::{
    FenceReport, Instant, InstantEnd, InstantReport, Prepared, PromoteOptions, PromotePlan, PromoteReport,
    Recovery, check_group, fence_without_copy, hydration, instant, is_begun, next_command,
    plan as plan_promotion, plan_all as plan_promotions, prepare as prepare_promotion, promote, quoted,
};
pub use rebuild::{RebuildReport, rebuild};
pub use rehearse::{RehearseOptions, RehearseReport, record_result, rehearse};
pub use report::{PointReport, points};
pub use restore::{Event, RestoreOptions, RestoreReport, Step, restore};
pub use rollback::{RollbackOptions, RollbackReport, rollback};
pub use status::{HydratingReport, ImageReport, TestReport, ThroughputReport, VolumeReport, status};
pub use verify::{FindingReport, VerifyReport, VerifyStep, verify};
pub use window::{
    CommitReport, UnpromoteReport, WindowReport, check_unpromote, commit, next_after_unpromote, unpromote,
};
