//! Who asked: the truth table of the label `tidelock.dev/inject`.
//!
//! | pod | namespace | |
//! | --- | --- | --- |
//! | `true` | anything or nothing | injected |
//! | `false` | anything or nothing | left, `opted-out` |
//! | nothing | `true` | injected |
//! | nothing | anything else or nothing | left, nobody asked |
//! | anything else | anything or nothing | left, `bad-label` |
//!
//! Only the two words count, because selectors of the API server know no others: a namespace labelled `yes` is never sent
//! to the webhook.

/// What the labels come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Protect it.
    Yes,
    /// The pod says no.
    OptedOut,
    /// Nobody asked.
    No,
    /// The pod's label is no word that means something.
    Unclear,
}

/// Reads the labels. The pod's beats the namespace's.
pub fn asked(pod: Option<&str>, namespace: Option<&str>) -> Asked {
    match (pod, namespace) {
        (Some("true"), _) | (None, Some("true")) => Asked::Yes,
        (Some("false"), _) => Asked::OptedOut,
        (None, _) => Asked::No,
        (Some(_), _) => Asked::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_truth_table() {
        let words = [None, Some("true"), Some("false"), Some("yes")];
        let [none, yes, no, other] = words;
        for namespace in words {
            assert_eq!(asked(yes, namespace), Asked::Yes, "{namespace:?}");
            assert_eq!(asked(no, namespace), Asked::OptedOut, "{namespace:?}");
            assert_eq!(asked(other, namespace), Asked::Unclear, "{namespace:?}");
        }
        assert_eq!(
            words.map(|namespace| asked(none, namespace)),
            [Asked::No, Asked::Yes, Asked::No, Asked::No]
        );
    }
}
