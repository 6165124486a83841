//! What was asked of the cutter and is not answered yet: first for a cut, then for its acknowledgements.
//!
//! A request whose point was lost on the way, because a session had to begin again from the receiver's tree, waits for the
//! next cut like a new one: the promise is about the name and the instant of asking, not about a number.

use tidelock_proto::{PointId, limits::TAGS_MAX, point::Consistency};

use super::desk::{Desk, Placed, Progress, Request};

#[derive(Debug, Default)]
pub(super) struct Errands {
    /// In the order they were asked.
    waiting: Vec<Request>,
    placed: Vec<(Placed, Request)>,
}

/// What the next commit has to carry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) tags: Vec<String>,
    /// The application stood still during the drain that found nothing.
    pub(super) app: bool,
}

impl Errands {
    /// Takes new requests off the desk, before a drain. Questions that nobody waits for any more are forgotten; names are not.
    pub(super) fn take_in(&mut self, desk: &Desk) {
        self.waiting.extend(desk.take());
        self.waiting.retain(|request| request.tag.is_some() || !request.progress.is_closed());
    }

    /// Whether a commit is wanted even where nothing changed.
    pub(super) fn want_point(&self) -> bool {
        self.waiting.iter().any(|request| request.tag.is_some())
    }

    /// The drain found nothing: what the commit is to carry. Requests that came too late are told so.
    pub(super) fn wanted(&mut self) -> Wanted {
        let mut wanted = Wanted::default();
        self.waiting.retain(|request| {
            let Some(quiesced) = &request.quiesced else { return true };
            let stood = quiesced.cut();
            wanted.app |= stood;
            let stays = stood || quiesced.or_crash;
            if !stays {
                request.progress.send_replace(Progress::TooLate);
            }
            stays
        });
        for tag in self.waiting.iter().filter_map(|request| request.tag.as_ref()) {
            if !wanted.tags.contains(tag) && wanted.tags.len() < TAGS_MAX {
                wanted.tags.push(tag.clone());
            }
        }
        wanted
    }

    /// `point` covers everything that was asked, and has these tags. More names than a point can have wait for the next.
    pub(super) fn on_cut(&mut self, point: PointId, consistency: Consistency, tags: &[String]) {
        let placed = Placed { point, consistency };
        let (now, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|request| request.tag.as_ref().is_none_or(|tag| tags.contains(tag)));
        self.waiting = later;
        for request in now {
            request.progress.send_replace(Progress::Cut(placed));
            self.placed.push((placed, request));
        }
    }

    /// Answers what is durable in every volume.
    pub(super) fn on_acked(&mut self, is_durable: impl Fn(PointId) -> bool) {
        self.placed.retain(|(placed, request)| {
            let durable = is_durable(placed.point);
            if durable {
                request.progress.send_replace(Progress::Durable(*placed));
            }
            !durable
        });
    }

    /// A session begins again from the receiver's tree: what was not durable has to be cut again. The application that stood
    /// still for the lost cut has gone on meanwhile.
    pub(super) fn begin_again(&mut self) {
        let mut lost: Vec<Request> =
            std::mem::take(&mut self.placed).into_iter().map(|(_, request)| request).collect();
        lost.retain_mut(|request| {
            let stays = request.quiesced.take().is_none_or(|quiesced| quiesced.or_crash);
            if !stays {
                request.progress.send_replace(Progress::TooLate);
            }
            stays
        });
        lost.append(&mut self.waiting);
        self.waiting = lost;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use tidelock_proto::{Epoch, Seq};

    use super::*;
    use crate::{cut::desk::Quiesced, limits::REQUESTS_MAX};

    fn point(seq: u64) -> PointId {
        PointId::new(Epoch(1), Seq(seq))
    }

    fn placed(seq: u64, consistency: Consistency) -> Placed {
        Placed { point: point(seq), consistency }
    }

    #[test]
    fn a_name_needs_a_point_of_its_own_and_a_question_does_not() {
        let (desk, mut errands) = (Desk::new().unwrap(), Errands::default());
        let question = desk.ask(None, None).unwrap();
        errands.take_in(&desk);
        assert!(!errands.want_point());
        errands.on_cut(point(4), Consistency::Crash, &[]);
        assert_eq!(*question.borrow(), Progress::Cut(placed(4, Consistency::Crash)));
        let name = desk.ask(Some("before".into()), None).unwrap();
        errands.take_in(&desk);
        assert!(errands.want_point());
        let wanted = errands.wanted();
        assert_eq!(wanted, Wanted { tags: vec!["before".to_owned()], app: false });
        errands.on_cut(point(5), Consistency::Crash, &wanted.tags);
        errands.on_acked(|point| point.seq <= Seq(4));
        assert_eq!(*question.borrow(), Progress::Durable(placed(4, Consistency::Crash)));
        assert_eq!(*name.borrow(), Progress::Cut(placed(5, Consistency::Crash)));
    }

    #[test]
    fn what_was_lost_with_a_session_is_cut_again() {
        let (desk, mut errands) = (Desk::new().unwrap(), Errands::default());
        let name = desk.ask(Some("kept".into()), None).unwrap();
        errands.take_in(&desk);
        let wanted = errands.wanted();
        errands.on_cut(point(9), Consistency::Crash, &wanted.tags);
        let quiesced = Arc::new(Quiesced::new(true));
        let app = desk.ask(Some("app".into()), Some(quiesced)).unwrap();
        errands.take_in(&desk);
        let wanted = errands.wanted();
        assert!(wanted.app);
        errands.on_cut(point(10), Consistency::App, &wanted.tags);
        errands.begin_again();
        let wanted = errands.wanted();
        assert_eq!(wanted, Wanted { tags: vec!["kept".to_owned(), "app".to_owned()], app: false });
        errands.on_cut(point(8), Consistency::Crash, &wanted.tags);
        errands.on_acked(|_| true);
        for answer in [name, app] {
            assert_eq!(*answer.borrow(), Progress::Durable(placed(8, Consistency::Crash)));
        }
    }

    #[test]
    fn a_cut_is_app_only_while_the_application_stands_still() {
        for (in_time, or_crash) in [(true, true), (true, false), (false, true), (false, false)] {
            let (desk, mut errands) = (Desk::new().unwrap(), Errands::default());
            let quiesced = Arc::new(Quiesced::new(or_crash));
            let name = desk.ask(Some("app".into()), Some(quiesced.clone())).unwrap();
            errands.take_in(&desk);
            assert!(in_time || !quiesced.end());
            let wanted = errands.wanted();
            assert_eq!(wanted.app, in_time);
            assert_eq!(wanted.tags.is_empty(), !in_time && !or_crash);
            assert_eq!(quiesced.end(), in_time, "both sides agree on who came first");
            let late = *name.borrow() == Progress::TooLate;
            assert_eq!(late, !in_time && !or_crash);
        }
    }

    #[test]
    fn what_is_outstanding_is_bounded() {
        let (desk, mut errands) = (Desk::new().unwrap(), Errands::default());
        let asked: Vec<_> =
            (0..REQUESTS_MAX).map(|i| desk.ask(Some(format!("tag-{i}")), None).unwrap()).collect();
        assert!(desk.ask(None, None).is_err());
        errands.take_in(&desk);
        let mut cuts = 0;
        while errands.want_point() {
            cuts += 1;
            let wanted = errands.wanted();
            assert!(wanted.tags.len() <= TAGS_MAX);
            errands.on_cut(point(cuts), Consistency::Crash, &wanted.tags);
        }
        errands.on_acked(|_| true);
        assert!(asked.iter().all(|answer| matches!(*answer.borrow(), Progress::Durable(_))));
        assert!(desk.ask(None, None).is_ok());
    }

    #[test]
    fn a_question_that_nobody_waits_for_is_forgotten() {
        let (desk, mut errands) = (Desk::new().unwrap(), Errands::default());
        drop(desk.ask(None, None).unwrap());
        drop(desk.ask(Some("name".into()), None).unwrap());
        errands.take_in(&desk);
        assert_eq!(errands.waiting.len(), 1);
    }
}
