//! What the injector asks: its Secret, its webhooks, whose token this is, and what that pod is.

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::ApiError;
use crate::identity::AUDIENCE;

/// The authority's calls.
pub trait AuthorityCalls: Send + Sync + 'static {
    /// The Secret with the authority, if it is there.
    fn secret(&self) -> impl Future<Output = Result<Option<Secret>, ApiError>> + Send;
    /// Creates it; a conflict says that it is there.
    fn create_secret(&self, secret: Secret) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// Puts this in its place; a conflict says that it was changed since it was read.
    fn replace_secret(&self, secret: Secret) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// The injector's webhooks.
    fn webhooks(&self) -> impl Future<Output = Result<MutatingWebhookConfiguration, ApiError>> + Send;
    /// Tells the API server whose certificates the named webhooks show; `version` is that of the configuration as it was read.
    fn set_bundle(
        &self,
        webhooks: &[String],
        version: &str,
        bundle: &str,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// The calls behind an identity.
pub trait IdentityCalls: Send + Sync + 'static {
    /// Whose token this is, for [`AUDIENCE`].
    fn review(&self, token: &str) -> impl Future<Output = Result<TokenReviewStatus, ApiError>> + Send;
    /// A pod, if there is one of this name.
    fn pod(&self, namespace: &str, name: &str) -> impl Future<Output = Result<Option<Pod>, ApiError>> + Send;
}

/// Where the injector's own objects are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The injector's namespace.
    pub namespace: String,
    /// The Secret with the authority.
    pub secret: String,
    /// The `MutatingWebhookConfiguration`.
    pub webhooks: String,
}

/// The calls over a client.
#[derive(Clone)]
pub struct InjectorApi {
    client: Client,
    place: Place,
}

impl InjectorApi {
    /// Calls through `client`.
    pub fn new(client: Client, place: Place) -> Self {
        Self { client, place }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.place.namespace)
    }
}

impl AuthorityCalls for InjectorApi {
    async fn secret(&self) -> Result<Option<Secret>, ApiError> {
        Ok(self.secrets().get_opt(&self.place.secret).await?)
    }

    async fn create_secret(&self, mut secret: Secret) -> Result<(), ApiError> {
        secret.metadata.name = Some(self.place.secret.clone());
        secret.metadata.namespace = Some(self.place.namespace.clone());
        self.secrets().create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    async fn replace_secret(&self, secret: Secret) -> Result<(), ApiError> {
        self.secrets().replace(&self.place.secret, &PostParams::default(), &secret).await?;
        Ok(())
    }

    async fn webhooks(&self) -> Result<MutatingWebhookConfiguration, ApiError> {
        Ok(Api::all(self.client.clone()).get(&self.place.webhooks).await?)
    }

    async fn set_bundle(&self, webhooks: &[String], version: &str, bundle: &str) -> Result<(), ApiError> {
        // Webhooks of a list are told apart by their names; whatever else they hold stays.
        let one = |name: &String| json!({"name": name, "clientConfig": {"caBundle": bundle}});
        let all: Vec<_> = webhooks.iter().map(one).collect();
        let patch = json!({"metadata": {"resourceVersion": version}, "webhooks": all});
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        api.patch(&self.place.webhooks, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(())
    }
}

impl IdentityCalls for InjectorApi {
    async fn review(&self, token: &str) -> Result<TokenReviewStatus, ApiError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        Ok(api.create(&PostParams::default(), &review).await?.status.unwrap_or_default())
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, ApiError> {
        Ok(Api::namespaced(self.client.clone(), namespace).get_opt(name).await?)
    }
}
