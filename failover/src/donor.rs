//! A receiver's hot image as the donor of a copy beside it: what is equal is cloned instead of being fetched and written, where the file system can.
//!
//! The image is only looked at. It may be at another point and goes on meanwhile: whatever is cloned is compared with the point's chunks ([`reconcile::Donor`]).

use std::{path::Path, sync::Arc};

use tidelock_proto::{Tree, VolumeName};
use tidelock_receiver::reconcile::{Donor, Options, Report};

use crate::{
    access::{Access, Image},
    error::FailoverError,
    promote::is_here,
    report::Choice,
    restore::{Event, write},
};

/// [`write`], with what the receiver's image of the volume has already, if it is on this machine.
pub(crate) fn write_beside(
    access: &Access,
    choice: &Choice,
    tree: &Tree,
    directory: &Path,
    target: &Options,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Report, FailoverError> {
    let donor = find(access, &choice.volume.name, choice);
    let target = Options { donor: donor.map(Arc::new), ..target.clone() };
    write(access, &choice.volume.name, tree, directory, &target, events)
}

/// Without one everything is fetched: no reason is worth more than that.
fn find(access: &Access, volume: &VolumeName, choice: &Choice) -> Option<Donor> {
    // One that does not follow would have to be waited for.
    let follows = |image: &Image| image.state == "following";
    let kept = choice.volume.live.as_ref().is_none_or(|live| live.image.as_ref().is_some_and(follows));
    let given = kept.then(|| access.image(volume, false).ok()).flatten()?;
    is_here(&given).then(|| Donor::open(&given.path).ok()).flatten()
}
