//! The webhook's certificate and the API server's bundle, kept in order while the injector runs.

use std::{
    path::PathBuf,
    sync::{Arc, RwLock},
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};
use tidelock_proto::pki::{Validity, renew};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{KeepError, Rotation, Trusted, Turn, look, obtain, split};
use crate::{
    api::{ApiError, AuthorityCalls},
    limits,
};

/// Keeps the certificate in a directory, and the bundle of the webhooks.
pub struct Keeper<C> {
    calls: C,
    /// The webhook's names in DNS.
    hosts: Vec<String>,
    /// Where its certificate is written to; nothing else may be there.
    directory: PathBuf,
    care: Care,
    current: Arc<RwLock<Arc<Trusted>>>,
    /// When the certificate that is in the directory is to be replaced.
    renew_at: SystemTime,
}

/// How the authority is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Care {
    /// When it gets a successor; never, if somebody else sees to that.
    pub rotation: Option<Rotation>,
    /// How often it is looked at.
    pub look_every: Duration,
}

impl Default for Care {
    fn default() -> Self {
        Self { rotation: Some(Rotation::default()), look_every: limits::AUTHORITY_LOOK_EVERY }
    }
}

impl<C: AuthorityCalls> Keeper<C> {
    /// Takes or makes the authority, and writes the first certificate.
    pub async fn begin(
        calls: C,
        hosts: Vec<String>,
        directory: PathBuf,
        care: Care,
    ) -> Result<Self, KeepError> {
        let now = SystemTime::now();
        let trusted = Arc::new(obtain(&calls, now).await?);
        let current = Arc::new(RwLock::new(trusted));
        let mut keeper = Self { calls, hosts, directory, care, current, renew_at: now };
        keeper.issue(now)?;
        Ok(keeper)
    }

    /// The authority as it is at any time.
    pub fn trusted(&self) -> impl Fn() -> Arc<Trusted> + Send + Sync + 'static + use<C> {
        let current = self.current.clone();
        move || current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Goes on until somebody replaces the authority. What cannot be done is told of and tried again: a webhook with an old
    /// bundle is passed over by the API server, and pods are created without protection.
    pub async fn keep(mut self) -> KeepError {
        loop {
            match self.look(SystemTime::now()).await {
                Ok(()) => {}
                Err(error @ KeepError::Replaced) => return error,
                Err(error) => warn!(%error, "certificates were not looked after"),
            }
            sleep(self.care.look_every).await;
        }
    }

    async fn look(&mut self, now: SystemTime) -> Result<(), KeepError> {
        let (found, secret) = look(&self.calls, now).await?;
        let (found, known) = (Arc::new(found), self.trusted()());
        let signs = found.authority.certificate_pem();
        if !split(&known.own).iter().any(|one| one == signs) {
            return Err(KeepError::Replaced);
        }
        let switched = signs != known.authority.certificate_pem();
        if switched {
            // Before anything that it signed is shown.
            self.check_bundle(&found).await?;
            info!("the authority's successor signs now");
        }
        if found.believed != known.believed {
            info!("other authorities are believed now");
        }
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = found.clone();
        if switched || now >= self.renew_at {
            self.issue(now)?;
        }
        self.check_bundle(&found).await?;
        match self.care.rotation {
            Some(rotation) => self.take_turn(&found, &secret, rotation, now).await,
            None if found.authority.not_after() < now + limits::AUTHORITY_ENDS_SOON => {
                let not_after = humantime::format_rfc3339_seconds(found.authority.not_after());
                warn!(%not_after, "the authority ends soon: replace its Secret, here and where peers believe it");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What this does is found by all replicas, this one among them, when they look the next time.
    async fn take_turn(
        &self,
        found: &Trusted,
        secret: &Secret,
        rotation: Rotation,
        now: SystemTime,
    ) -> Result<(), KeepError> {
        let Some((turn, secret)) = found.turn(secret, rotation, now)? else { return Ok(()) };
        match self.calls.replace_secret(secret).await {
            // Another replica was first.
            Err(ApiError::Conflict(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(()) => {}
        }
        match turn {
            Turn::Announced(at) => {
                let signs_at = humantime::format_rfc3339_seconds(at);
                warn!(%signs_at, "the authority has a successor: copy its Secret to where peers believe it, before the successor signs");
            }
            Turn::Switched => info!("the authority's successor takes its place"),
        }
        Ok(())
    }

    async fn check_bundle(&self, trusted: &Trusted) -> Result<(), KeepError> {
        let webhooks = self.calls.webhooks().await?;
        let wanted = &trusted.own;
        let behind = others(&webhooks, wanted);
        if behind.is_empty() {
            return Ok(());
        }
        use base64::{Engine, engine::general_purpose::STANDARD};
        let version = webhooks.metadata.resource_version.unwrap_or_default();
        self.calls.set_bundle(&behind, &version, &STANDARD.encode(wanted)).await?;
        info!(webhooks = behind.len(), "bundle of the webhooks set");
        Ok(())
    }

    fn issue(&mut self, now: SystemTime) -> Result<(), KeepError> {
        let trusted = self.trusted()();
        let validity = Validity::starting(now, limits::WEBHOOK_VALIDITY);
        let (certificate, key) = trusted.authority.issue_web(&self.hosts, validity)?;
        renew(&self.directory, &certificate, &key, &trusted.own)?;
        let ends = validity.not_after.min(trusted.authority.not_after());
        self.renew_at = now + two_thirds(ends.duration_since(now).unwrap_or_default());
        Ok(())
    }
}

/// The webhooks with another bundle than this.
fn others(webhooks: &MutatingWebhookConfiguration, wanted: &str) -> Vec<String> {
    let all = webhooks.webhooks.iter().flatten();
    let differs = all.filter(|webhook| {
        webhook.client_config.ca_bundle.as_ref() != Some(&ByteString(wanted.as_bytes().to_vec()))
    });
    differs.map(|webhook| webhook.name.clone()).collect()
}

fn two_thirds(time: Duration) -> Duration {
    time / 3 * 2
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;
    use tidelock_proto::pki::{Authority, CA_VALIDITY};

    use super::*;
    use crate::{api::ApiError, authority::write};

    /// A Secret and webhooks that are as they were made or patched.
    struct Shelf {
        secret: Mutex<Secret>,
        bundle: Mutex<Option<String>>,
        patches: Mutex<usize>,
    }

    impl AuthorityCalls for Arc<Shelf> {
        async fn secret(&self) -> Result<Option<Secret>, ApiError> {
            Ok(Some(self.secret.lock().expect("not poisoned").clone()))
        }

        async fn create_secret(&self, _: Secret) -> Result<(), ApiError> {
            Err(ApiError::Conflict("it is there".to_owned()))
        }

        async fn replace_secret(&self, secret: Secret) -> Result<(), ApiError> {
            *self.secret.lock().expect("not poisoned") = secret;
            Ok(())
        }

        async fn webhooks(&self) -> Result<MutatingWebhookConfiguration, ApiError> {
            let bundle = self.bundle.lock().expect("not poisoned").clone();
            let one = |name: &str| {
                json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                    "clientConfig": {"caBundle": bundle}})
            };
            Ok(serde_json::from_value(json!({"webhooks": [one("a"), one("b")]})).expect("webhooks"))
        }

        async fn set_bundle(&self, webhooks: &[String], _: &str, bundle: &str) -> Result<(), ApiError> {
            assert_eq!(webhooks, ["a", "b"]);
            *self.bundle.lock().expect("not poisoned") = Some(bundle.to_owned());
            *self.patches.lock().expect("not poisoned") += 1;
            Ok(())
        }
    }

    fn authority() -> Authority {
        Authority::generate(Validity::starting(SystemTime::now(), CA_VALIDITY)).expect("made")
    }

    #[tokio::test]
    async fn certificates_are_renewed_in_time_and_the_bundle_is_set_once() {
        let shelf = Arc::new(Shelf {
            secret: Mutex::new(write(&authority())),
            bundle: Mutex::new(None),
            patches: Mutex::new(0),
        });
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("certificate");
        let begun = Keeper::begin(
            shelf.clone(),
            vec!["injector.tidelock.svc".to_owned()],
            path.clone(),
            Care::default(),
        );
        let mut keeper = begun.await.expect("begun");
        let shown = || std::fs::read_to_string(path.join("tls.crt")).expect("it is there");
        let (first, now) = (shown(), SystemTime::now());
        keeper.look(now).await.expect("looked");
        keeper.look(now + limits::WEBHOOK_VALIDITY / 2).await.expect("looked");
        assert_eq!((shown(), *shelf.patches.lock().expect("not poisoned")), (first.clone(), 1));
        keeper.look(now + limits::WEBHOOK_VALIDITY / 4 * 3).await.expect("looked");
        assert_ne!(first, shown());

        // Somebody replaces the authority: it is for a new process to begin with it.
        *shelf.secret.lock().expect("not poisoned") = write(&authority());
        assert!(matches!(keeper.look(now).await, Err(KeepError::Replaced)));
    }
}
