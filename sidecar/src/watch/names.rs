//! Where names come from: inotify, fanotify, or both.
//!
//! inotify needs no privilege and hears of the volume alone, so it is asked first. Its watches are limited, and a volume may have
//! more directories than the node allows. Those for which there is no watch are watched by fanotify where that is permitted.
//! Each directory is in one of the two. Whether what one call did to two directories is told by two queues makes no difference:
//! a call has queued all its events before the locks of its directories are free, so a drain that begins after that finds them all.

use std::os::fd::BorrowedFd;

use tidelock_proto::FileId;

use super::{Event, FanotifySource, InotifySource, Source, WatchError, WatchLimits};

/// Which source of names the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NamesChoice {
    /// inotify; fanotify for the directories beyond its limit, where that is permitted.
    #[default]
    Auto,
    /// inotify alone.
    Inotify,
    /// fanotify, or fail.
    Fanotify,
}

/// The sources of names of one volume.
pub(super) struct Names {
    choice: NamesChoice,
    limits: WatchLimits,
    /// `None` as long as the kernel grants no instance, or where none is wanted.
    inotify: Option<InotifySource>,
    fanotify: Option<FanotifySource>,
    reason: String,
    changed: bool,
}

impl Names {
    pub(super) fn open(
        root: BorrowedFd<'_>,
        choice: NamesChoice,
        limits: &WatchLimits,
    ) -> Result<Self, WatchError> {
        let (mut inotify, mut fanotify) = (None, None);
        let reason = match choice {
            NamesChoice::Fanotify => {
                fanotify = Some(FanotifySource::open(root, limits)?);
                "names from fanotify"
            }
            NamesChoice::Auto | NamesChoice::Inotify => {
                match InotifySource::open(limits) {
                    Ok(source) => inotify = Some(source),
                    Err(WatchError::InstanceLimit { .. }) => {}
                    Err(error) => return Err(error),
                }
                "names from inotify"
            }
        };
        let (limits, reason) = (limits.clone(), reason.to_owned());
        Ok(Self { choice, limits, inotify, fanotify, reason, changed: false })
    }

    /// Which sources are in use, and why: a short fragment for one log line.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether that is another one than when this was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn watch_directory(&mut self, dir: FileId, fd: BorrowedFd<'_>) -> Result<(), WatchError> {
        if let Some(fanotify) = &mut self.fanotify {
            // One that has a watch keeps it.
            let inotify = self.inotify.as_mut().filter(|inotify| inotify.watches(dir));
            return match inotify.map(|inotify| inotify.watch_directory(dir, fd)) {
                None => fanotify.watch_directory(dir, fd),
                Some(Err(WatchError::WatchLimit { .. })) => {
                    // It is another inode by now, and there is no watch for that.
                    fanotify.watch_directory(dir, fd)?;
                    self.inotify.iter_mut().for_each(|inotify| inotify.forget_directory(dir));
                    Ok(())
                }
                Some(watched) => watched,
            };
        }
        let watched = match &mut self.inotify {
            Some(inotify) => inotify.watch_directory(dir, fd),
            none => InotifySource::open(&self.limits)
                .and_then(|inotify| none.insert(inotify).watch_directory(dir, fd)),
        };
        match watched {
            Err(limit @ (WatchError::WatchLimit { .. } | WatchError::InstanceLimit { .. }))
                if self.choice == NamesChoice::Auto =>
            {
                self.go_beyond(limit, dir, fd)
            }
            watched => watched,
        }
    }

    /// inotify has no room: what it does not watch is fanotify's from now on. Where that is not to be had either, the limit
    /// stands; the next directory asks again.
    fn go_beyond(&mut self, limit: WatchError, dir: FileId, fd: BorrowedFd<'_>) -> Result<(), WatchError> {
        let Ok(mut fanotify) = FanotifySource::open(fd, &self.limits) else { return Err(limit) };
        fanotify.watch_directory(dir, fd)?;
        self.inotify.iter_mut().for_each(|inotify| inotify.forget_directory(dir));
        self.fanotify = Some(fanotify);
        self.reason = match limit {
            WatchError::WatchLimit { limit } => {
                format!("names from inotify up to its limit of {limit} watches, from fanotify beyond it")
            }
            _ => "names from fanotify, for want of an inotify instance".to_owned(),
        };
        self.changed = true;
        tracing::info!(reason = self.reason, "inotify has no room; the filesystem is marked");
        Ok(())
    }

    pub(super) fn forget_directory(&mut self, dir: FileId) {
        self.inotify.iter_mut().for_each(|inotify| inotify.forget_directory(dir));
        self.fanotify.iter_mut().for_each(|fanotify| fanotify.forget_directory(dir));
    }

    pub(super) fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        self.inotify.iter_mut().try_for_each(|inotify| inotify.drain(events))?;
        self.fanotify.iter_mut().try_for_each(|fanotify| fanotify.drain(events))
    }

    pub(super) fn pollable(&self) -> Vec<BorrowedFd<'_>> {
        let inotify = self.inotify.iter().flat_map(Source::pollable);
        inotify.chain(self.fanotify.iter().flat_map(Source::pollable)).collect()
    }

    /// Whether an event of the volume is queued, or was read by this and not yet drained.
    pub(super) fn look(&mut self) -> Result<bool, WatchError> {
        if let Some(inotify) = &self.inotify
            && !inotify.is_empty()?
        {
            return Ok(true);
        }
        self.fanotify.as_mut().map_or(Ok(false), FanotifySource::look)
    }

    /// Whether something was read by [`Self::look`] that nobody has drained.
    pub(super) fn has_pending(&self) -> bool {
        self.fanotify.as_ref().is_some_and(FanotifySource::has_pending)
    }

    #[cfg(test)]
    pub(super) fn directories(&self) -> (usize, usize) {
        let inotify = self.inotify.as_ref().map_or(0, InotifySource::directories);
        (inotify, self.fanotify.as_ref().map_or(0, FanotifySource::directories))
    }
}
