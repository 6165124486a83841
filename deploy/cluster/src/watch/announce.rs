//! When somebody is told of what was found: once it has lasted, not again too soon, and never too many at one time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tidelock_injector::Reason;

use super::watched::{Finding, Owner};
use crate::limits;

/// What is told of once: an owner and a reason, however many pods there are.
type Topic = (String, Owner, Reason);

/// What was said, and when.
pub struct Announcer {
    topics: BTreeMap<Topic, Said>,
    /// How long something has to last.
    after: Duration,
    /// How many may be said at once.
    room: u32,
    /// Since when that counts.
    since: Instant,
}

struct Said {
    /// Since when it is so; nothing if it is not, for now.
    lasts: Option<Instant>,
    /// When it was said last.
    told: Option<Instant>,
}

impl Announcer {
    /// Nothing was said.
    pub fn new(after: Duration, now: Instant) -> Self {
        Self { topics: BTreeMap::new(), after, room: limits::EVENTS_BURST, since: now }
    }

    /// Which of these are to be told now, what has waited longest first. What there is no room for stays due.
    pub fn due<'a>(&mut self, findings: &'a [Finding], now: Instant) -> Vec<&'a Finding> {
        self.refill(now);
        let key = |one: &Finding| (one.namespace.clone(), one.owner.clone(), one.reason);
        let current: BTreeMap<Topic, &Finding> = findings.iter().map(|one| (key(one), one)).collect();
        // What comes and goes, as a container that is restarted, is one topic.
        self.topics.retain(|topic, said| {
            said.lasts = said.lasts.filter(|_| current.contains_key(topic));
            said.lasts.is_some() || said.told.is_some_and(|told| now - told < limits::REPORT_AGAIN)
        });
        let mut due = Vec::new();
        for (topic, finding) in &current {
            let said = self.topics.entry(topic.clone()).or_insert(Said { lasts: None, told: None });
            let lasts = *said.lasts.get_or_insert(now);
            let again = said.told.is_none_or(|told| now - told >= limits::REPORT_AGAIN);
            if again && now - lasts >= self.after {
                due.push((said.told.unwrap_or(lasts), topic, *finding));
            }
        }
        due.sort_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1)));
        due.truncate(usize::try_from(self.room).unwrap_or(usize::MAX));
        self.room -= u32::try_from(due.len()).unwrap_or(self.room);
        for (_, topic, _) in &due {
            if let Some(said) = self.topics.get_mut(*topic) {
                said.told = Some(now);
            }
        }
        due.into_iter().map(|(_, _, finding)| finding).collect()
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.duration_since(self.since);
        let more = passed.as_millis() / limits::EVENT_EVERY.as_millis();
        let more = u32::try_from(more).unwrap_or(limits::EVENTS_BURST).min(limits::EVENTS_BURST);
        if self.room + more >= limits::EVENTS_BURST {
            (self.room, self.since) = (limits::EVENTS_BURST, now);
        } else {
            self.room += more;
            self.since += limits::EVENT_EVERY * more;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn finding(owner: usize, pods: &[&str]) -> Finding {
        let name = format!("set-{owner:03}");
        let owner = Owner {
            api_version: "apps/v1".to_owned(),
            kind: "StatefulSet".to_owned(),
            uid: name.clone(),
            name,
        };
        let pods = pods.iter().map(|pod| (*pod).to_owned()).collect::<BTreeSet<_>>();
        let message = "it does not say which user".to_owned();
        Finding { namespace: "shop".to_owned(), owner, reason: Reason::UnknownUser, message, pods }
    }

    fn seconds(many: u64) -> Duration {
        Duration::from_secs(many)
    }

    #[test]
    fn what_lasts_is_told_once_and_again_before_it_is_forgotten() {
        let begun = Instant::now();
        let mut announcer = Announcer::new(limits::REPORT_AFTER, begun);
        let mut told = Vec::new();
        for second in 0..7200 {
            // The second pod comes later, and a minute long neither is there.
            let pods: &[&str] = if second < 60 { &["a"] } else { &["a", "b"] };
            let findings = if (300..360).contains(&second) { vec![] } else { vec![finding(1, pods)] };
            told.extend(announcer.due(&findings, begun + seconds(second)).iter().map(|_| second));
        }
        assert_eq!(told, [10, 3010, 6010]);
    }

    #[test]
    fn what_ends_by_itself_is_not_told_of() {
        let begun = Instant::now();
        let mut announcer = Announcer::new(limits::REPORT_AFTER, begun);
        for second in 0..100 {
            let there = second % 10 < 9;
            let findings: Vec<_> = there.then(|| finding(1, &["a"])).into_iter().collect();
            assert!(announcer.due(&findings, begun + seconds(second)).is_empty(), "{second}");
        }
        assert!(announcer.topics.len() <= 1);
        announcer.due(&[], begun + seconds(101));
        assert!(announcer.topics.is_empty(), "nothing is remembered that was never told");
    }

    proptest! {
        /// However many there are: never more than the burst and what time has brought, and in the end each once.
        #[test]
        fn many_are_told_of_one_after_the_other(many in 1..120usize, step in 1..40u64) {
            let begun = Instant::now();
            let findings: Vec<Finding> = (0..many).map(|owner| finding(owner, &["a"])).collect();
            let mut announcer = Announcer::new(limits::REPORT_AFTER, begun);
            let mut told: Vec<String> = Vec::new();
            let mut second = 0;
            while second < limits::REPORT_AGAIN.as_secs() {
                let due = announcer.due(&findings, begun + seconds(second));
                told.extend(due.iter().map(|one| one.owner.name.clone()));
                let brought = second / limits::EVENT_EVERY.as_secs();
                prop_assert!(told.len() as u64 <= u64::from(limits::EVENTS_BURST) + brought);
                second += step;
            }
            let once: BTreeSet<_> = told.iter().collect();
            prop_assert_eq!((once.len(), told.len()), (many, many));
        }
    }
}
