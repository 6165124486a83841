//! The authority's successor: when it is made, and when it begins to sign.
//!
//! ```text
//! ca.crt   old            old + next              next + old             next
//!          │ its end is    │ believed by all who   │ signs: all who       │ old is over
//!          │ near          │ renew or start        │ renew or start       │
//!          └── announce ───┴── the overlap passes ─┴── switch             └── at the next change
//! ```
//! Nobody has to hear of it at one moment. Between announcement and switch everybody gets a list with both, at the latest when its
//! identity is renewed; what the old one has signed is believed until it ends. Both steps are a change of the Secret, which the
//! API takes once, whichever replica is first; each replica then follows what is there.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tidelock_proto::pki::{Authority, CA_VALIDITY, Validity};

use super::{CERTIFICATE, KEY, KeepError};
use crate::limits;

/// The successor's key in the Secret; its certificate is in the bundle.
const NEXT_KEY: &str = "next.key";
/// Since when it has been there, in seconds since 1970.
const NEXT_SINCE: &str = "next.since";

/// When an authority is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// A successor is made so long before the end.
    pub before_end: Duration,
    /// So long both are believed before the successor signs.
    pub overlap: Duration,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { before_end: limits::AUTHORITY_ENDS_SOON, overlap: limits::AUTHORITY_OVERLAP }
    }
}

/// An authority that will sign.
#[derive(Debug)]
pub(super) struct Successor {
    pub(super) authority: Authority,
    since: SystemTime,
}

impl Successor {
    /// That of a Secret whose bundle this is, if it has one.
    pub(super) fn of(secret: &Secret, bundle: &[String]) -> Option<Self> {
        let text = |name: &str| std::str::from_utf8(&secret.data.as_ref()?.get(name)?.0).ok();
        let key = text(NEXT_KEY)?;
        let since = UNIX_EPOCH + Duration::from_secs(text(NEXT_SINCE)?.trim().parse().ok()?);
        let authority = bundle.iter().find_map(|one| Authority::from_pem(one, key).ok())?;
        Some(Self { authority, since })
    }

    /// When it is to sign in the place of one that ends then: after the overlap, and in time if that is too long.
    pub(super) fn signs_at(&self, end: SystemTime, overlap: Duration) -> SystemTime {
        let left = end.duration_since(self.since).unwrap_or_default();
        self.since + overlap.min(left / 2)
    }
}

/// A change of the Secret that is due.
#[derive(Debug)]
pub(super) enum Turn {
    /// A successor is there, and signs from then on.
    Announced(SystemTime),
    /// It signs.
    Switched,
}

/// What is to be done about an authority, and the Secret after it.
pub(super) fn turn(
    secret: &Secret,
    signs: &Authority,
    own: &[String],
    successor: Option<&Successor>,
    rotation: Rotation,
    now: SystemTime,
) -> Result<Option<(Turn, Secret)>, KeepError> {
    let (turn, first, keys) = match successor {
        Some(successor) => {
            if now < successor.signs_at(signs.not_after(), rotation.overlap) {
                return Ok(None);
            }
            let first = successor.authority.certificate_pem().to_owned();
            (Turn::Switched, vec![first], vec![(KEY, successor.authority.key_pem().to_owned())])
        }
        None if signs.not_after() >= now + rotation.before_end => return Ok(None),
        None => {
            let authority = Authority::generate(Validity::starting(now, CA_VALIDITY))?;
            let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let keys = vec![
                (KEY, signs.key_pem().to_owned()),
                (NEXT_KEY, authority.key_pem().to_owned()),
                (NEXT_SINCE, since.to_string()),
            ];
            let first = vec![signs.certificate_pem().to_owned(), authority.certificate_pem().to_owned()];
            let at = Successor { authority, since: now }.signs_at(signs.not_after(), rotation.overlap);
            (Turn::Announced(at), first, keys)
        }
    };
    let mut secret = secret.clone();
    let data = secret.data.get_or_insert_with(BTreeMap::new);
    let mut set =
        |name: &str, text: String| drop(data.insert(name.to_owned(), ByteString(text.into_bytes())));
    let others = own.iter().filter(|one| !first.contains(one)).cloned();
    let bundle: Vec<String> = first.iter().cloned().chain(others).collect();
    set(CERTIFICATE, bundle.concat());
    keys.into_iter().for_each(|(name, text)| set(name, text));
    if matches!(turn, Turn::Switched) {
        data.remove(NEXT_KEY);
        data.remove(NEXT_SINCE);
    }
    Ok(Some((turn, secret)))
}

/// The certificates of a bundle, each PEM that ends with a line's end.
pub(super) fn split(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = bundle.split_inclusive(END).filter(|part| part.contains("-----BEGIN CERTIFICATE-----"));
    parts.filter_map(|part| Some(part[part.find("-----BEGIN")?..].to_owned() + "\n")).collect()
}

/// Whether a certificate is over.
pub(super) fn is_over(certificate: &str, now: SystemTime) -> bool {
    let ends = || {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        let seconds = parsed.validity().not_after.timestamp().try_into().ok()?;
        Some(UNIX_EPOCH + Duration::from_secs(seconds))
    };
    ends().is_none_or(|ends| ends <= now)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{read, write},
        *,
    };

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Somebody looks each week for fifty years.
    #[test]
    fn whoever_signs_was_believed_for_long_and_whoever_signed_is_until_its_end() {
        let begun = SystemTime::now();
        let first = Authority::generate(Validity::starting(begun, CA_VALIDITY)).expect("made");
        let mut secret = write(&first);
        let mut believed_since: BTreeMap<String, SystemTime> = BTreeMap::new();
        let mut signers: Vec<(String, SystemTime)> = Vec::new();
        for week in 0..50 * 52 {
            let now = begun + DAY * 7 * week;
            let trusted = read(&secret, now).expect("there is always one that signs");
            let own = split(&trusted.own);
            for one in &own {
                believed_since.entry(one.clone()).or_insert(now);
            }
            assert!(own.len() <= 2, "{} in week {week}", own.len());
            let signs = trusted.authority.certificate_pem().to_owned();
            assert!(trusted.authority.not_after() > now + DAY * 60);
            if signers.last().is_none_or(|(last, _)| *last != signs) {
                let known = now.duration_since(believed_since[&signs]).expect("earlier");
                assert!(signers.is_empty() || known >= limits::AUTHORITY_OVERLAP, "{known:?}");
                signers.push((signs, trusted.authority.not_after()));
            }
            for (signer, end) in &signers {
                assert!(*end <= now || own.contains(signer), "in week {week}");
            }
            if let Some((_, after)) = trusted.turn(&secret, Rotation::default(), now).expect("made") {
                secret = after;
            }
        }
        assert_eq!(signers.len(), 6);
    }

    #[test]
    fn one_that_was_found_late_is_replaced_before_it_ends() {
        let now = SystemTime::now();
        let late = Authority::generate(Validity::starting(now, DAY * 10)).expect("made");
        let secret = write(&late);
        let trusted = read(&secret, now).expect("an authority");
        let (turn, secret) =
            trusted.turn(&secret, Rotation::default(), now).expect("made").expect("it is due");
        let Turn::Announced(at) = turn else { panic!("{turn:?}") };
        assert!(at > now + DAY * 4 && at < now + DAY * 6);
        let trusted = read(&secret, at).expect("an authority");
        let turn = trusted.turn(&secret, Rotation::default(), at).expect("made");
        assert!(matches!(turn, Some((Turn::Switched, _))));
        // Nobody was there to switch, and the old one is over.
        let away = read(&secret, now + DAY * 11).expect("the successor");
        assert_ne!(away.authority.certificate_pem(), late.certificate_pem());
        assert_eq!(split(&away.own).len(), 1);
        let end = now + CA_VALIDITY;
        let (_, secret) = away.turn(&secret, Rotation::default(), end).expect("made").expect("it is due");
        let again = read(&secret, now + DAY * 12).expect("the same");
        assert_eq!(again.authority.certificate_pem(), away.authority.certificate_pem());
    }
}
