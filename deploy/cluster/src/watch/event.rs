//! What was found, as an Event that `kubectl describe` shows.

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};

use super::watched::{Finding, Owner};
use crate::limits;

/// Who says so.
const CONTROLLER: &str = "tidelock.dev/injector";

/// The Event about a finding, on its owner or on what that belongs to.
pub fn event(finding: &Finding, owner: &Owner, replica: &str, now: Timestamp) -> Event {
    let namespace = Some(finding.namespace.clone());
    let first = finding.pods.first().cloned().unwrap_or_default();
    let whom = match finding.pods.len() {
        1 => format!("pod {first}"),
        many => format!("{many} pods, such as {first},"),
    };
    let note =
        format!("{whom} asked for protection, without success ({}): {}", finding.reason, finding.message);
    let name = cut(&owner.name, limits::EVENT_NAME_MAX_BYTES);
    Event {
        metadata: ObjectMeta {
            // As other programs name them: unlike any other of the same object.
            name: Some(format!("{}.{:x}", name.trim_end_matches(['.', '-']), now.as_nanosecond())),
            namespace: namespace.clone(),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some("NotProtected".to_owned()),
        action: Some("Protect".to_owned()),
        note: Some(cut(&note, limits::EVENT_NOTE_MAX_BYTES).to_owned()),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(replica.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            namespace: namespace.clone(),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        }),
        related: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(first),
            namespace,
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

/// At most so many bytes, cut at a character.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rfind(|end| text.is_char_boundary(*end)).unwrap_or_default();
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tidelock_injector::Reason;

    use super::*;

    #[test]
    fn an_event_fits_the_api() {
        let name = format!("{}.{}", "o".repeat(199), "x".repeat(53));
        let owner = Owner {
            api_version: "apps/v1".to_owned(),
            kind: "StatefulSet".to_owned(),
            uid: "u".to_owned(),
            name,
        };
        let pods: BTreeSet<String> = (0..3).map(|pod| format!("orders-{pod}")).collect();
        let finding = Finding {
            namespace: "shop".to_owned(),
            owner: owner.clone(),
            reason: Reason::UnknownUser,
            message: "ä".repeat(2000),
            pods,
        };
        let event = event(&finding, &owner, "injector-1", Timestamp::MAX);
        let name = event.metadata.name.expect("a name");
        assert!(name.len() <= 253 && name.starts_with("ooo") && !name.contains(".."), "{name}");
        let note = event.note.expect("a text");
        assert!(note.len() <= 1024 && note.starts_with("3 pods, such as orders-0, asked"), "{note}");
        assert!(note.contains("(unknown-user)"));
        assert_eq!(event.regarding.and_then(|one| one.uid).as_deref(), Some("u"));
    }
}
