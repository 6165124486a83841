//! What a look at pods asks, as the person who looks.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client,
    api::{ListParams, PartialObjectMeta},
};

use super::ApiError;
use crate::limits;

/// The calls of a look at pods.
pub trait CheckCalls: Send + Sync {
    /// The labels of a namespace, or of all.
    fn labels(
        &self,
        namespace: Option<&str>,
    ) -> impl Future<Output = Result<BTreeMap<String, BTreeMap<String, String>>, ApiError>> + Send;
    /// Its pods, or all.
    fn pods(&self, namespace: Option<&str>) -> impl Future<Output = Result<Vec<Pod>, ApiError>> + Send;
}

/// The calls over a client.
#[derive(Clone)]
pub struct CheckApi(Client);

impl CheckApi {
    /// Calls through `client`.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

impl CheckCalls for CheckApi {
    async fn labels(
        &self,
        namespace: Option<&str>,
    ) -> Result<BTreeMap<String, BTreeMap<String, String>>, ApiError> {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.0.clone());
        let found = match namespace {
            Some(name) => vec![api.get(name).await?],
            None => api.list(&ListParams::default()).await?.items,
        };
        let labels = |one: PartialObjectMeta<Namespace>| {
            (one.metadata.name.unwrap_or_default(), one.metadata.labels.unwrap_or_default())
        };
        Ok(found.into_iter().map(labels).collect())
    }

    async fn pods(&self, namespace: Option<&str>) -> Result<Vec<Pod>, ApiError> {
        let api: Api<Pod> = match namespace {
            Some(name) => Api::namespaced(self.0.clone(), name),
            None => Api::all(self.0.clone()),
        };
        let mut page = ListParams::default().limit(limits::LIST_PAGE);
        let mut all = Vec::new();
        loop {
            let list = api.list(&page).await?;
            all.extend(list.items);
            let Some(next) = list.metadata.continue_.filter(|next| !next.is_empty()) else { return Ok(all) };
            page = page.continue_token(&next);
        }
    }
}
