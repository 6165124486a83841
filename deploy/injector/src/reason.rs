//! Why a pod is left as it is, or is not protected in the way it asked for.

use std::fmt;

use crate::limits;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// A reason, as programs read it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word that stands for it in warnings, metrics and annotations. Never changes.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

reasons! {
    /// Nobody asked.
    NotAsked = "not-asked",
    /// The pod's label says no.
    OptedOut = "opted-out",
    /// The pod's label is neither `true` nor `false`.
    BadLabel = "bad-label",
    /// It has the sidecar.
    AlreadyInjected = "already-injected",
    /// A namespace of the cluster itself.
    KubeSystem = "kube-system",
    /// The namespace that the injector runs in.
    OwnNamespace = "own-namespace",
    /// A namespace that the injector's operator has left out.
    ExcludedNamespace = "excluded-namespace",
    /// Not the creation of a pod.
    NotAPod = "not-a-pod",
    /// The pod cannot be understood.
    UnreadablePod = "unreadable-pod",
    /// The mirror of a static pod, which nobody can change.
    StaticPod = "static-pod",
    /// A pod of Windows.
    Windows = "windows",
    /// A pod in the node's network, where ports of different pods meet.
    HostNetwork = "host-network",
    /// A container or volume of the pod has a name that the injector needs.
    NameTaken = "name-taken",
    /// No claim is mounted for writing.
    NoWritablePvc = "no-writable-pvc",
    /// A directory of the node.
    HostPath = "host-path",
    /// A claim that is used as a block device.
    BlockVolume = "block-volume",
    /// A volume was named that is not one of the pod, or no claim.
    NoSuchVolume = "no-such-volume",
    /// A claim or namespace whose name cannot be that of a volume.
    BadName = "bad-name",
    /// More volumes than one sidecar takes.
    TooManyVolumes = "too-many-volumes",
    /// The pod does not say which user writes the volume.
    UnknownUser = "unknown-user",
    /// Another user than that of the pod's first protected volume writes this one.
    OtherUser = "other-user",
    /// Neither pod nor injector say where to replicate to.
    NoReceiver = "no-receiver",
    /// An annotation makes no sense.
    BadAnnotation = "bad-annotation",
    /// An annotation that nobody reads.
    UnknownAnnotation = "unknown-annotation",
    /// An annotation for what is not offered yet.
    NotOffered = "not-offered",
    /// Exact ranges in a namespace without the label that permits them.
    ExactNotAllowed = "exact-not-allowed",
    /// It would get a sidecar now, and has none.
    Missed = "missed",
    /// It has a sidecar that does not run.
    SidecarNotRunning = "sidecar-not-running",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A reason, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// The pod was left as it is because of it.
    pub skipped: bool,
}

impl Note {
    /// The pod is left as it is.
    pub(crate) fn skip(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), skipped: true }
    }

    /// The pod is protected all the same.
    pub(crate) fn hint(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), skipped: false }
    }

    /// In one line that is short enough for the API server, cut at a character.
    pub fn warning(&self) -> String {
        let mut text = self.to_string();
        if text.len() > limits::WARNING_MAX_BYTES {
            let fits = (0..=limits::WARNING_MAX_BYTES - 3).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(fits.unwrap_or(0));
            text.push_str("...");
        }
        text
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.skipped { "not injected" } else { "note" };
        let line = self.message.replace(|letter: char| letter.is_control(), " ");
        write!(f, "tidelock: {what} ({}): {line}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_words_that_occur_once() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        let plain = |code: &&str| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        assert!(codes.iter().all(plain), "{codes:?}");
    }

    #[test]
    fn a_warning_fits_the_api_server() {
        let long = Note::skip(Reason::BadAnnotation, "ä\n".repeat(400)).warning();
        assert!(long.len() <= limits::WARNING_MAX_BYTES && long.ends_with("..."), "{long}");
        assert!(!long.contains('\n'));
    }
}
