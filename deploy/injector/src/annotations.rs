//! What a pod says about its protection, beyond that it wants it: annotations `tidelock.dev/…`.
//!
//! An annotation that makes no sense leaves the pod unprotected and says so, rather than protecting it in a way that nobody
//! asked for. One that nobody knows is named, because it may be a misspelt one.

use std::collections::BTreeMap;

use thiserror::Error;
use tidelock_sidecar::Excludes;

use crate::{
    config::Resources,
    limits,
    names::{INJECTED_BY, PREFIX, STATUS},
    reason::{Note, Reason},
};

/// The wishes of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Names of the pod's volumes; `None` is every claim that is mounted for writing.
    pub volumes: Option<Vec<String>>,
    /// `HOST:PORT`.
    pub receiver: Option<String>,
    /// Globs.
    pub exclude: Vec<String>,
    /// How points come about where the volume never rests.
    pub consistency: Consistency,
    /// Commands that bring the application to rest and end that.
    pub hooks: Option<(String, String)>,
    /// Whether empty volumes are filled first.
    pub restore: Restore,
    /// The tenant whose points fill empty volumes, if it is another.
    pub restore_tenant: Option<String>,
    /// The application is stopped when its volume was promoted elsewhere.
    pub stop_on_fence: bool,
    /// The event sources.
    pub tracker: Tracker,
    /// The writer epoch, once the volume was promoted.
    pub epoch: Option<u64>,
    /// The sidecar's image.
    pub image: Option<String>,
    /// What is set here beats the configuration.
    pub resources: Resources,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: Option<String>,
    /// The Secret with the sidecar's identity.
    pub identity_secret: Option<String>,
    /// The Secret with the identity of the container that fills.
    pub restore_secret: Option<String>,
}

/// Annotation `consistency`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Cuts as they come.
    #[default]
    Crash,
    /// An overdue cut stops the application's processes.
    Pause,
    /// An overdue cut runs the hooks.
    App,
}

/// Annotation `tracker`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tracker {
    /// The best there is.
    #[default]
    Auto,
    /// Exact ranges.
    Exact,
    /// No ranges.
    Inotify,
}

/// Annotation `restore`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Restore {
    /// The application finds what is there.
    #[default]
    Never,
    /// An empty volume gets the newest point.
    IfEmpty,
    /// An empty volume gets the newest point not after this time, as it was written.
    Time(String),
}

/// An annotation that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{PREFIX}{name}: {problem}")]
pub struct AnnotationError {
    /// Without the prefix.
    pub name: &'static str,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with an annotation.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Problem {
    /// Nothing is written there.
    #[error("is empty")]
    Empty,
    /// Not one of a few words.
    #[error("{found:?} is not one of {choices}")]
    NotOneOf {
        /// What is written there.
        found: String,
        /// The words.
        choices: &'static str,
    },
    /// Not of its form.
    #[error("{found:?} is no {wanted}")]
    Form {
        /// What is written there.
        found: String,
        /// What should be.
        wanted: &'static str,
    },
    /// More than can be.
    #[error("has more than {0} entries")]
    TooMany(usize),
    /// A glob that the sidecar would refuse.
    #[error("{0}")]
    Exclude(String),
    /// It says nothing alone.
    #[error("needs {0}")]
    Needs(&'static str),
    /// A request above its limit.
    #[error("{request} is more than the limit {limit}")]
    AboveLimit {
        /// The request.
        request: String,
        /// The limit.
        limit: String,
    },
}

type Result<T> = std::result::Result<T, AnnotationError>;

/// Annotations that are known and not offered.
const NOT_OFFERED: [(&str, &str); 2] = [
    ("group", "all volumes of a pod are cut together already"),
    ("quiesce-container", "hooks run in the sidecar"),
];

/// Reads the annotations of a pod.
pub fn parse(annotations: &BTreeMap<String, String>) -> Result<(Wishes, Vec<Note>)> {
    let mut known = Known { annotations, read: Vec::new() };
    let wishes = read(&mut known)?;
    let mut notes = Vec::new();
    let ours = annotations.keys().filter_map(|key| key.strip_prefix(PREFIX));
    for name in ours.filter(|name| !known.read.contains(name)) {
        let full = format!("{PREFIX}{name}");
        match NOT_OFFERED.iter().find(|(not, _)| *not == name) {
            Some((_, why)) => {
                notes.push(Note::hint(Reason::NotOffered, format!("{full} has no effect: {why}")));
            }
            None if full == STATUS || full == INJECTED_BY => {}
            None => {
                notes.push(Note::hint(
                    Reason::UnknownAnnotation,
                    format!("{full} is not known: is it misspelt?"),
                ));
            }
        }
    }
    Ok((wishes, notes))
}

fn read(known: &mut Known<'_>) -> Result<Wishes> {
    let hooks = match (known.text("quiesce-command")?, known.text("unquiesce-command")?) {
        (Some(quiesce), Some(unquiesce)) => Some((quiesce, unquiesce)),
        (None, None) => None,
        (Some(_), None) => return fail("quiesce-command", Problem::Needs("tidelock.dev/unquiesce-command")),
        (None, Some(_)) => return fail("unquiesce-command", Problem::Needs("tidelock.dev/quiesce-command")),
    };
    let image = known.text("sidecar-image")?;
    if hooks.is_some() && image.is_none() {
        let why = "tidelock.dev/sidecar-image with a shell: the default image has none";
        return fail("quiesce-command", Problem::Needs(why));
    }
    let consistency = known.choice("consistency", "crash, pause, app", |word| match word {
        "crash" => Some(Consistency::Crash),
        "pause" => Some(Consistency::Pause),
        "app" => Some(Consistency::App),
        _ => None,
    })?;
    if consistency == Some(Consistency::App) && hooks.is_none() {
        return fail("consistency", Problem::Needs("tidelock.dev/quiesce-command and unquiesce-command"));
    }
    let stop_on_fence = known.choice("on-fence", "nothing, stop", |word| match word {
        "nothing" => Some(false),
        "stop" => Some(true),
        _ => None,
    })?;
    let tracker = known.choice("tracker", "auto, exact, inotify", |word| match word {
        "auto" => Some(Tracker::Auto),
        "exact" => Some(Tracker::Exact),
        "inotify" => Some(Tracker::Inotify),
        _ => None,
    })?;
    let log_level = known.choice("log-level", "error, warn, info, debug, trace", |word| {
        matches!(word, "error" | "warn" | "info" | "debug" | "trace").then(|| word.to_owned())
    })?;
    Ok(Wishes {
        volumes: known.list("volumes", limits::VOLUMES_MAX)?,
        receiver: known.formed("receiver", "HOST:PORT", is_address)?,
        exclude: exclude(known)?,
        consistency: consistency.unwrap_or_default(),
        hooks,
        restore: restore(known)?,
        restore_tenant: known.formed("restore-tenant", "name of a tenant", is_tenant)?,
        stop_on_fence: stop_on_fence.unwrap_or_default(),
        tracker: tracker.unwrap_or_default(),
        epoch: epoch(known)?,
        image,
        resources: resources(known)?,
        log_level,
        identity_secret: known.formed("identity-secret", "name of a Secret", is_object_name)?,
        restore_secret: known.formed("restore-secret", "name of a Secret", is_object_name)?,
    })
}

fn exclude(known: &mut Known<'_>) -> Result<Vec<String>> {
    let globs = known.list("exclude", limits::EXCLUDES_MAX)?.unwrap_or_default();
    match Excludes::new(globs.iter().map(String::as_str)) {
        Ok(_) => Ok(globs),
        Err(error) => fail("exclude", Problem::Exclude(error.to_string())),
    }
}

fn restore(known: &mut Known<'_>) -> Result<Restore> {
    Ok(match known.text("restore")?.as_deref() {
        None | Some("never") => Restore::Never,
        Some("if-empty") => Restore::IfEmpty,
        Some(time) if humantime::parse_rfc3339_weak(time).is_ok() => Restore::Time(time.to_owned()),
        Some(other) => {
            let choices = "never, if-empty, a time such as 2026-01-31T12:30:00Z";
            return fail("restore", Problem::NotOneOf { found: other.to_owned(), choices });
        }
    })
}

fn is_tenant(text: &str) -> bool {
    tidelock_proto::ids::check_part(text).is_ok()
}

fn epoch(known: &mut Known<'_>) -> Result<Option<u64>> {
    let Some(text) = known.text("epoch")? else { return Ok(None) };
    match text.parse() {
        Ok(epoch) if (1..=tidelock_proto::limits::EPOCH_MAX).contains(&epoch) => Ok(Some(epoch)),
        _ => fail("epoch", Problem::Form { found: text, wanted: "epoch, which `tidelock promote` prints" }),
    }
}

fn resources(known: &mut Known<'_>) -> Result<Resources> {
    let mut quantity = |name| known.formed(name, "quantity such as 100m, 1 or 256Mi", is_quantity);
    let asked = Resources {
        cpu_request: quantity("sidecar-cpu-request")?,
        cpu_limit: quantity("sidecar-cpu-limit")?,
        memory_request: quantity("sidecar-memory-request")?,
        memory_limit: quantity("sidecar-memory-limit")?,
    };
    let pairs = [
        ("sidecar-cpu-request", &asked.cpu_request, &asked.cpu_limit),
        ("sidecar-memory-request", &asked.memory_request, &asked.memory_limit),
    ];
    for (name, request, limit) in pairs {
        if let (Some(request), Some(limit)) = (request, limit)
            && value(request) > value(limit)
        {
            return fail(name, Problem::AboveLimit { request: request.clone(), limit: limit.clone() });
        }
    }
    Ok(asked)
}

/// What the pod says beats what is configured; where the two would contradict each other, the configured one gives way,
/// because the API server refuses a pod with a request above its limit.
pub(crate) fn merge(asked: &Resources, configured: &Resources) -> Resources {
    let pair = |asked: (&Option<String>, &Option<String>), configured: (&Option<String>, &Option<String>)| {
        let mut request = asked.0.clone().or_else(|| configured.0.clone());
        let mut limit = asked.1.clone().or_else(|| configured.1.clone());
        let above = match (&request, &limit) {
            (Some(request), Some(limit)) => value(request) > value(limit),
            _ => false,
        };
        if above && asked.0.is_some() {
            limit.clone_from(&request);
        } else if above {
            request.clone_from(&limit);
        }
        (request, limit)
    };
    let (cpu_request, cpu_limit) =
        pair((&asked.cpu_request, &asked.cpu_limit), (&configured.cpu_request, &configured.cpu_limit));
    let (memory_request, memory_limit) = pair(
        (&asked.memory_request, &asked.memory_limit),
        (&configured.memory_request, &configured.memory_limit),
    );
    Resources { cpu_request, cpu_limit, memory_request, memory_limit }
}

/// A quantity in thousandths; `None` if it is none, or nothing.
pub(crate) fn value(text: &str) -> Option<u128> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor: u128 = match &text[digits.len()..] {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        _ => return None,
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || digits.len() > 15
        || !all_digits(whole)
        || !all_digits(part)
        || digits.ends_with('.')
    {
        return None;
    }
    let scaled = whole.parse::<u128>().ok()? * factor;
    let part = if part.is_empty() {
        0
    } else {
        part.parse::<u128>().ok()? * factor / 10_u128.pow(part.len() as u32)
    };
    Some(scaled + part).filter(|value| *value > 0)
}

/// Whether the text is a quantity of processors or memory.
pub fn is_quantity(text: &str) -> bool {
    value(text).is_some()
}

/// `HOST:PORT`.
pub fn is_address(text: &str) -> bool {
    let host = |host: &str| {
        !host.is_empty() && !host.contains(|letter: char| letter.is_whitespace() || letter.is_control())
    };
    text.rsplit_once(':')
        .is_some_and(|(name, port)| host(name) && port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn is_object_name(text: &str) -> bool {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 253
        && bytes.iter().all(|byte| edge(byte) || b"-.".contains(byte))
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
}

fn fail<T>(name: &'static str, problem: Problem) -> Result<T> {
    Err(AnnotationError { name, problem })
}

/// The annotations, and which of them were read.
struct Known<'a> {
    annotations: &'a BTreeMap<String, String>,
    read: Vec<&'static str>,
}

impl Known<'_> {
    fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        self.read.push(name);
        match self.annotations.get(&format!("{PREFIX}{name}")).map(|text| text.trim()) {
            Some("") => fail(name, Problem::Empty),
            found => Ok(found.map(str::to_owned)),
        }
    }

    fn choice<T>(
        &mut self,
        name: &'static str,
        choices: &'static str,
        pick: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(found) = self.text(name)? else { return Ok(None) };
        match pick(&found) {
            None => fail(name, Problem::NotOneOf { found, choices }),
            picked => Ok(picked),
        }
    }

    fn formed(
        &mut self,
        name: &'static str,
        wanted: &'static str,
        is_formed: impl Fn(&str) -> bool,
    ) -> Result<Option<String>> {
        match self.text(name)? {
            Some(found) if !is_formed(&found) => fail(name, Problem::Form { found, wanted }),
            found => Ok(found),
        }
    }

    /// Entries between commas or line ends.
    fn list(&mut self, name: &'static str, most: usize) -> Result<Option<Vec<String>>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let entries = text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
        let entries: Vec<_> = entries.map(str::to_owned).collect();
        match entries.len() {
            0 => fail(name, Problem::Empty),
            many if many > most => fail(name, Problem::TooMany(most)),
            _ => Ok(Some(entries)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<(Wishes, Vec<Note>)> {
        let annotations = pairs.iter().map(|(name, text)| (format!("{PREFIX}{name}"), (*text).to_owned()));
        parse(&annotations.collect())
    }

    #[test]
    fn everything_that_is_offered_is_understood() {
        let (wishes, notes) = of(&[
            ("volumes", "data, wal"),
            ("receiver", "standby.example.org:9900"),
            ("exclude", "*.tmp\n/cache"),
            ("consistency", "app"),
            ("quiesce-command", "a"),
            ("unquiesce-command", "b"),
            ("restore", "2026-01-31T12:30:00Z"),
            ("on-fence", "stop"),
            ("tracker", "inotify"),
            ("epoch", "3"),
            ("sidecar-image", "x:1"),
            ("sidecar-cpu-request", "0.5"),
            ("sidecar-cpu-limit", "500m"),
            ("log-level", "debug"),
            ("status", "{}"),
        ])
        .expect("all of it makes sense");
        assert_eq!(notes, []);
        assert_eq!(wishes.volumes, Some(vec!["data".to_owned(), "wal".to_owned()]));
        assert_eq!(wishes.exclude, ["*.tmp", "/cache"]);
        assert_eq!(wishes.restore, Restore::Time("2026-01-31T12:30:00Z".to_owned()));
        assert_eq!((wishes.consistency, wishes.epoch), (Consistency::App, Some(3)));
        assert!(wishes.stop_on_fence && wishes.tracker == Tracker::Inotify);
    }

    #[test]
    fn nonsense_is_named() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("volumes", " ,")], "tidelock.dev/volumes: is empty"),
            (&[("tracker", "Exact")], "tidelock.dev/tracker: \"Exact\" is not one of auto, exact, inotify"),
            (&[("receiver", "standby")], "tidelock.dev/receiver: \"standby\" is no HOST:PORT"),
            (
                &[("restore", "always")],
                "tidelock.dev/restore: \"always\" is not one of never, if-empty, a time",
            ),
            (&[("exclude", "**")], "leaves out everything"),
            (&[("consistency", "app")], "tidelock.dev/consistency: needs tidelock.dev/quiesce-command"),
            (&[("quiesce-command", "a")], "needs tidelock.dev/unquiesce-command"),
            (&[("quiesce-command", "a"), ("unquiesce-command", "b")], "the default image has none"),
            (&[("epoch", "0")], "tidelock.dev/epoch: \"0\" is no epoch"),
            (&[("sidecar-memory-limit", "1e3")], "is no quantity"),
            (
                &[("sidecar-memory-limit", "1Mi"), ("sidecar-memory-request", "1.5Mi")],
                "more than the limit 1Mi",
            ),
            (&[("identity-secret", "No")], "is no name of a Secret"),
        ];
        for (pairs, wanted) in cases {
            let error = of(pairs).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn what_nobody_reads_is_named() {
        let (_, notes) = of(&[("recevier", "x:1"), ("group", "a")]).expect("not an error");
        let reasons: Vec<_> = notes.iter().map(|note| note.reason).collect();
        assert_eq!(reasons, [Reason::NotOffered, Reason::UnknownAnnotation]);
    }

    #[test]
    fn quantities_compare_as_the_api_server_does() {
        assert_eq!(value("1.5Gi"), Some(1_536 << 20).map(|bytes: u128| bytes * 1_000));
        assert_eq!(value("500m").map(|value| value * 2), value("1"));
        for bad in ["", "Mi", "1.", ".5", "-1", "1Q", "0", "1 Mi", "99999999999999999"] {
            assert_eq!(value(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_configured_quantity_gives_way() {
        let asked = Resources { memory_request: Some("1Gi".to_owned()), ..Resources::default() };
        let configured = Resources { memory_limit: Some("512Mi".to_owned()), ..Resources::default() };
        assert_eq!(merge(&asked, &configured).memory_limit.as_deref(), Some("1Gi"));
        let asked = Resources { memory_limit: Some("64Mi".to_owned()), ..Resources::default() };
        let configured = Resources { memory_request: Some("96Mi".to_owned()), ..Resources::default() };
        assert_eq!(merge(&asked, &configured).memory_request.as_deref(), Some("64Mi"));
    }
}
