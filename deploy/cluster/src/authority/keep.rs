//! The webhook's certificate and the API server's bundle, kept in order while the injector runs.

use std::{
    path::PathBuf,
    sync::{Arc, RwLock},
    time::{Duration, SystemTime},
};

use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use tidelock_proto::pki::{Validity, renew};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{KeepError, Trusted, obtain};
use crate::{api::AuthorityCalls, limits};

/// Keeps the certificate in a directory, and the bundle of the webhooks.
pub struct Keeper<C> {
    calls: C,
    /// The webhook's names in DNS.
    hosts: Vec<String>,
    /// Where its certificate is written to; nothing else may be there.
    directory: PathBuf,
    current: Arc<RwLock<Arc<Trusted>>>,
    /// When the certificate that is in the directory is to be replaced.
    renew_at: SystemTime,
}

impl<C: AuthorityCalls> Keeper<C> {
    /// Takes or makes the authority, and writes the first certificate.
    pub async fn begin(calls: C, hosts: Vec<String>, directory: PathBuf) -> Result<Self, KeepError> {
        let now = SystemTime::now();
        let trusted = Arc::new(obtain(&calls, now).await?);
        let current = Arc::new(RwLock::new(trusted));
        let mut keeper = Self { calls, hosts, directory, current, renew_at: now };
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
            sleep(limits::AUTHORITY_LOOK_EVERY).await;
        }
    }

    async fn look(&mut self, now: SystemTime) -> Result<(), KeepError> {
        let found = obtain(&self.calls, now).await?;
        let known = self.trusted()();
        if found.authority.certificate_pem() != known.authority.certificate_pem() {
            return Err(KeepError::Replaced);
        }
        if found.believed != known.believed {
            info!("other authorities are believed now");
            *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(found);
        }
        if now >= self.renew_at {
            self.issue(now)?;
        }
        let trusted = self.trusted()();
        if trusted.authority.not_after() < now + limits::AUTHORITY_ENDS_SOON {
            let not_after = humantime::format_rfc3339_seconds(trusted.authority.not_after());
            warn!(%not_after, "the authority ends soon: replace its Secret, here and where peers believe it");
        }
        self.check_bundle(&trusted).await
    }

    async fn check_bundle(&self, trusted: &Trusted) -> Result<(), KeepError> {
        let webhooks = self.calls.webhooks().await?;
        let wanted = trusted.authority.certificate_pem();
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
        renew(&self.directory, &certificate, &key, trusted.authority.certificate_pem())?;
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

    use k8s_openapi::api::core::v1::Secret;
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
        let begun = Keeper::begin(shelf.clone(), vec!["injector.tidelock.svc".to_owned()], path.clone());
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
