//! What is known of pods and namespaces, and what follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{api::PartialObjectMeta, runtime::watcher::Event};
use tidelock_injector::{Config, INJECT_LABEL, Namespace as Labelled, Note, Protection, Reason, protection};

/// What pods belong to, or a pod that belongs to nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// `apps/v1`
    pub api_version: String,
    /// `StatefulSet`
    pub kind: String,
    /// `orders`
    pub name: String,
    /// Another one may have its name later.
    pub uid: String,
}

impl Owner {
    /// The controller of a pod, or the pod.
    pub fn of(pod: &ObjectMeta) -> Self {
        let mut owners = pod.owner_references.iter().flatten();
        owners.find(|owner| owner.controller == Some(true)).map_or_else(
            || Self {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: pod.name.clone().unwrap_or_default(),
                uid: pod.uid.clone().unwrap_or_default(),
            },
            Self::from,
        )
    }
}

impl From<&OwnerReference> for Owner {
    fn from(owner: &OwnerReference) -> Self {
        Self {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.to_ascii_lowercase(), self.name)
    }
}

/// Pods of one owner that are not protected for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where they are.
    pub namespace: String,
    /// What they belong to.
    pub owner: Owner,
    /// For programs.
    pub reason: Reason,
    /// For people, of the first of them.
    pub message: String,
    /// Their names; not empty.
    pub pods: BTreeSet<String>,
}

/// What is kept of a pod. Its namespace's label may change, so both answers are.
struct Seen {
    owner: Owner,
    unasked: Verdict,
    asked: Verdict,
}

/// What is counted or told of.
enum Verdict {
    Protected,
    Unprotected(Note),
    Other,
}

impl From<Protection> for Verdict {
    fn from(protection: Protection) -> Self {
        match protection {
            Protection::Protected => Self::Protected,
            Protection::Unprotected(note) => Self::Unprotected(note),
            Protection::NotAsked | Protection::Nothing | Protection::Over | Protection::Starting => {
                Self::Other
            }
        }
    }
}

/// Objects by name, as a watch tells of them. While everything is listed anew, what was known before holds.
struct Known<K, V> {
    current: BTreeMap<K, V>,
    coming: BTreeMap<K, V>,
    whole: bool,
}

impl<K: Ord, V> Known<K, V> {
    fn new() -> Self {
        Self { current: BTreeMap::new(), coming: BTreeMap::new(), whole: false }
    }

    /// `look` gives an object's name, and what is to be kept of it, if anything.
    fn handle<T>(&mut self, event: Event<T>, look: impl Fn(T) -> (K, Option<V>)) {
        match event {
            Event::Init => self.coming.clear(),
            Event::InitApply(object) => {
                if let (key, Some(kept)) = look(object) {
                    self.coming.insert(key, kept);
                }
            }
            Event::InitDone => {
                self.current = mem::take(&mut self.coming);
                self.whole = true;
            }
            Event::Apply(object) => match look(object) {
                (key, Some(kept)) => drop(self.current.insert(key, kept)),
                (key, None) => drop(self.current.remove(&key)),
            },
            Event::Delete(object) => drop(self.current.remove(&look(object).0)),
        }
    }
}

/// The state of the watch.
pub struct Watched {
    config: Config,
    /// By namespace and name.
    pods: Known<(String, String), Seen>,
    /// Those that ask for their pods.
    asking: Known<String, ()>,
}

impl Watched {
    /// Nothing is known yet.
    pub fn new(config: Config) -> Self {
        Self { config, pods: Known::new(), asking: Known::new() }
    }

    /// A pod came, changed or went.
    pub fn on_pod(&mut self, event: Event<Pod>) {
        let config = &self.config;
        self.pods.handle(event, |pod| {
            let meta = &pod.metadata;
            let namespace = meta.namespace.clone().unwrap_or_default();
            let judge = |labels: BTreeMap<String, String>| {
                Verdict::from(protection(&pod, &Labelled { name: namespace.clone(), labels }, config))
            };
            let unasked = judge(BTreeMap::new());
            let asked = judge(BTreeMap::from([(INJECT_LABEL.to_owned(), "true".to_owned())]));
            let worth = !matches!((&unasked, &asked), (Verdict::Other, Verdict::Other));
            let kept = worth.then(|| Seen { owner: Owner::of(meta), unasked, asked });
            ((namespace, meta.name.clone().unwrap_or_default()), kept)
        });
    }

    /// A namespace came, changed or went.
    pub fn on_namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        self.asking.handle(event, |namespace| {
            let meta = namespace.metadata;
            let word = meta.labels.as_ref().and_then(|labels| labels.get(INJECT_LABEL));
            (meta.name.unwrap_or_default(), word.is_some_and(|word| word == "true").then_some(()))
        });
    }

    fn verdicts(&self) -> impl Iterator<Item = (&(String, String), &Seen, &Verdict)> {
        self.pods.current.iter().map(|(key, seen)| {
            let asks = self.asking.current.contains_key(&key.0);
            (key, seen, if asks { &seen.asked } else { &seen.unasked })
        })
    }

    /// Who is not protected; nothing before everything was listed once.
    pub fn findings(&self) -> Option<Vec<Finding>> {
        if !(self.pods.whole && self.asking.whole) {
            return None;
        }
        let mut found: BTreeMap<(&String, &Owner, Reason), Finding> = BTreeMap::new();
        for ((namespace, name), seen, verdict) in self.verdicts() {
            let Verdict::Unprotected(note) = verdict else { continue };
            let finding = found.entry((namespace, &seen.owner, note.reason)).or_insert_with(|| Finding {
                namespace: namespace.clone(),
                owner: seen.owner.clone(),
                reason: note.reason,
                message: note.message.clone(),
                pods: BTreeSet::new(),
            });
            finding.pods.insert(name.clone());
        }
        Some(found.into_values().collect())
    }

    /// Pods whose sidecar runs, by namespace.
    pub fn protected(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for ((namespace, _), _, verdict) in self.verdicts() {
            if matches!(verdict, Verdict::Protected) {
                *counts.entry(namespace.clone()).or_default() += 1;
            }
        }
        counts
    }
}
