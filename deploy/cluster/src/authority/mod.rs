//! The injector's own authority, for clusters without cert-manager.
//!
//! It is made once, by whichever replica is first: the API refuses to create a Secret twice, and who comes second takes
//! what is there. Every replica then makes its own certificate for the webhook, in its own memory, so no serving key is
//! kept anywhere. The bundle that the API server believes is the Secret's certificate, whoever writes it, so replicas need
//! no leader for that.
//!
//! A Secret that was there before is taken as it is: one authority for two clusters is a Secret that was copied. It may
//! hold further authorities that pods are to believe, for a receiver of another one. Before it ends it gets a successor, which
//! is believed long before it signs ([`Rotation`]); whoever believes it in other clusters has to hear of that in this time.

mod keep;
mod metrics;
mod rotate;

use std::{collections::BTreeMap, time::SystemTime};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use thiserror::Error;
use tidelock_proto::pki::{Authority, AuthorityError, CA_VALIDITY, PkiError, Validity};
use tracing::info;

pub use keep::{Care, Keeper};
pub(crate) use metrics::Ends;
pub use rotate::Rotation;
use rotate::{Successor, Turn, is_over, split, turn};

use crate::{
    api::{ApiError, AuthorityCalls},
    limits,
};

/// The authority's certificate in the Secret; its successor's and its predecessor's are there, too, as long as they count.
const CERTIFICATE: &str = "ca.crt";
/// Its key.
const KEY: &str = "ca.key";
/// Further authorities that pods believe.
const TRUST: &str = "trust.crt";

/// Why there is no authority.
#[derive(Debug, Error)]
pub enum KeepError {
    /// The API did not do as asked.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The Secret lacks a part.
    #[error("the Secret of the authority holds no {0}")]
    Missing(&'static str),
    /// What it holds is no authority.
    #[error("the Secret of the authority: {0}")]
    Bad(#[from] AuthorityError),
    /// Its time is over.
    #[error("the authority expired at {}: delete its Secret, and restart the injector and what it protects", humantime::format_rfc3339_seconds(*.0))]
    Expired(SystemTime),
    /// A certificate could not be made or written.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Somebody put another authority in its place.
    #[error("the authority was replaced: this process ends, and begins with the new one")]
    Replaced,
    /// The Secret neither exists nor can be created.
    #[error("the Secret of the authority comes and goes")]
    Unsteady,
}

/// The authority, and what pods are to believe.
#[derive(Debug)]
pub struct Trusted {
    /// What signs.
    pub authority: Authority,
    /// Its certificate, and its successor's and its predecessor's: whom the injector's own certificate may be of. PEM.
    pub own: String,
    /// These and those of others, PEM.
    pub believed: String,
    successor: Option<Successor>,
}

impl Trusted {
    /// When its successor is to sign, if it has one.
    fn successor_signs_at(&self, rotation: Rotation) -> Option<SystemTime> {
        let successor = self.successor.as_ref()?;
        Some(successor.signs_at(self.authority.not_after(), rotation.overlap))
    }

    /// What is to be done about this authority, which was read from this Secret.
    fn turn(
        &self,
        secret: &Secret,
        rotation: Rotation,
        now: SystemTime,
    ) -> Result<Option<(Turn, Secret)>, KeepError> {
        turn(secret, &self.authority, &split(&self.own), self.successor.as_ref(), rotation, now)
    }
}

/// The authority in the Secret, which is made if it is not there.
pub async fn obtain(calls: &impl AuthorityCalls, now: SystemTime) -> Result<Trusted, KeepError> {
    Ok(look(calls, now).await?.0)
}

/// The same, and the Secret that it is from.
async fn look(calls: &impl AuthorityCalls, now: SystemTime) -> Result<(Trusted, Secret), KeepError> {
    for _ in 0..limits::CREATE_ATTEMPTS {
        if let Some(secret) = calls.secret().await? {
            return Ok((read(&secret, now)?, secret));
        }
        let made = Authority::generate(Validity::starting(now, CA_VALIDITY))?;
        match calls.create_secret(write(&made)).await {
            Ok(()) => info!("authority made"),
            Err(ApiError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
        // What counts is what is there, also if this replica was the first.
    }
    Err(KeepError::Unsteady)
}

fn write(authority: &Authority) -> Secret {
    let text = |text: &str| ByteString(text.as_bytes().to_vec());
    let data = BTreeMap::from([
        (CERTIFICATE.to_owned(), text(authority.certificate_pem())),
        (KEY.to_owned(), text(authority.key_pem())),
    ]);
    Secret { data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() }
}

fn read(secret: &Secret, now: SystemTime) -> Result<Trusted, KeepError> {
    let part = |name: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name)).ok_or(KeepError::Missing(name))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| KeepError::Missing(name))
    };
    let (bundle, key) = (part(CERTIFICATE)?, part(KEY)?);
    let mut bundle = split(&bundle);
    let signs = bundle.iter().position(|one| Authority::from_pem(one, &key).is_ok()).unwrap_or_default();
    let mut authority = Authority::from_pem(bundle.get(signs).ok_or(KeepError::Missing(CERTIFICATE))?, &key)?;
    bundle[..=signs].rotate_right(1);
    bundle.retain(|one| !is_over(one, now));
    let mut successor = Successor::of(secret, &bundle);
    if authority.not_after() <= now {
        // Nobody was there when it was time.
        authority = successor.take().ok_or(KeepError::Expired(authority.not_after()))?.authority;
    }
    let own = bundle.concat();
    let mut believed = own.clone();
    if let Ok(more) = part(TRUST) {
        believed.push_str(&more);
    }
    Ok(Trusted { authority, own, believed, successor })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;

    use super::*;

    /// A Secret that can be created once, as an API server keeps it.
    #[derive(Default)]
    struct Shelf(Mutex<Option<Secret>>);

    impl AuthorityCalls for std::sync::Arc<Shelf> {
        async fn secret(&self) -> Result<Option<Secret>, ApiError> {
            let secret = self.0.lock().expect("not poisoned").clone();
            // Whoever else runs comes now: between the look and the creation.
            tokio::task::yield_now().await;
            Ok(secret)
        }

        async fn create_secret(&self, secret: Secret) -> Result<(), ApiError> {
            let mut shelf = self.0.lock().expect("not poisoned");
            if shelf.is_some() {
                return Err(ApiError::Conflict("it is there".to_owned()));
            }
            *shelf = Some(secret);
            Ok(())
        }

        async fn replace_secret(&self, _: Secret) -> Result<(), ApiError> {
            Err(ApiError::Conflict("nobody replaces it here".to_owned()))
        }

        async fn webhooks(&self) -> Result<MutatingWebhookConfiguration, ApiError> {
            Ok(MutatingWebhookConfiguration::default())
        }

        async fn set_bundle(&self, _: &[String], _: &str, _: &str) -> Result<(), ApiError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn replicas_that_begin_together_have_one_authority() {
        let shelf = std::sync::Arc::new(Shelf::default());
        let now = SystemTime::now();
        let (one, other) = tokio::join!(obtain(&shelf, now), obtain(&shelf, now));
        let (one, other) = (one.expect("an authority"), other.expect("an authority"));
        assert_eq!(one.authority.certificate_pem(), other.authority.certificate_pem());
        assert_eq!(one.believed, other.believed);
    }

    #[tokio::test]
    async fn a_secret_that_is_no_authority_is_told_of_and_not_replaced() {
        let now = SystemTime::now();
        let made = Authority::generate(Validity::starting(now, CA_VALIDITY)).expect("made");
        let other = Authority::generate(Validity::starting(now, CA_VALIDITY)).expect("made");
        let mut mixed = write(&made);
        let data = mixed.data.as_mut().expect("data");
        data.insert(KEY.to_owned(), ByteString(other.key_pem().as_bytes().to_vec()));
        let mut half = write(&made);
        half.data.as_mut().expect("data").remove(KEY);
        for secret in [Secret::default(), half, mixed] {
            let shelf = std::sync::Arc::new(Shelf(Mutex::new(Some(secret.clone()))));
            assert!(obtain(&shelf, now).await.is_err());
            assert_eq!(shelf.0.lock().expect("not poisoned").as_ref(), Some(&secret));
        }
        let shelf = std::sync::Arc::new(Shelf(Mutex::new(Some(write(&made)))));
        let late = obtain(&shelf, now + 2 * CA_VALIDITY).await;
        assert!(matches!(late, Err(KeepError::Expired(_))), "{late:?}");
    }

    #[test]
    fn further_authorities_are_believed_and_do_not_sign() {
        let now = SystemTime::now();
        let own = Authority::generate(Validity::starting(now, CA_VALIDITY)).expect("made");
        let other = Authority::generate(Validity::starting(now, CA_VALIDITY)).expect("made");
        let mut secret = write(&own);
        let text = ByteString(other.certificate_pem().as_bytes().to_vec());
        secret.data.as_mut().expect("data").insert(TRUST.to_owned(), text);
        let trusted = read(&secret, now).expect("an authority");
        assert_eq!(trusted.authority.certificate_pem(), own.certificate_pem());
        assert_eq!(trusted.believed.matches("BEGIN CERTIFICATE").count(), 2);
    }
}
