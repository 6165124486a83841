//! What the recorder asks: which pods are protected, and the objects of their namespaces.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta},
};
use serde_json::{Value, json};
use tidelock_manifests::{KINDS, Rule};

use super::{
    ApiError,
    apply::{is_not_found, resource, resource_of},
};
use crate::limits;

/// The recorder's calls.
pub trait RecorderCalls: Send + Sync {
    /// The metadata of all pods.
    fn pods(&self) -> impl Future<Output = Result<Vec<PartialObjectMeta<Pod>>, ApiError>> + Send;
    /// The objects of a kind in a namespace.
    fn objects(
        &self,
        namespace: &str,
        kind: &str,
    ) -> impl Future<Output = Result<Vec<Value>, ApiError>> + Send;
    /// The custom resources of a rule in a namespace, or all if the kind is in none; nothing if the cluster does not know the kind.
    fn custom(
        &self,
        namespace: &str,
        rule: &Rule,
    ) -> impl Future<Output = Result<Option<Vec<Value>>, ApiError>> + Send;
    /// The metadata of a namespace, if it is there.
    fn namespace(&self, name: &str) -> impl Future<Output = Result<Option<Value>, ApiError>> + Send;
}

/// The calls over a client.
#[derive(Clone)]
pub struct RecorderApi(Client);

impl RecorderApi {
    /// Calls through `client`.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

impl RecorderCalls for RecorderApi {
    async fn pods(&self) -> Result<Vec<PartialObjectMeta<Pod>>, ApiError> {
        let api: Api<Pod> = Api::all(self.0.clone());
        let mut page = ListParams::default().limit(limits::LIST_PAGE);
        let mut all = Vec::new();
        loop {
            let list = api.list_metadata(&page).await?;
            all.extend(list.items);
            let Some(next) = list.metadata.continue_.filter(|next| !next.is_empty()) else { return Ok(all) };
            page = page.continue_token(&next);
        }
    }

    async fn objects(&self, namespace: &str, kind: &str) -> Result<Vec<Value>, ApiError> {
        let resource = resource(kind).ok_or_else(|| ApiError::Kind(kind.to_owned()))?;
        let api = Api::namespaced_with(self.0.clone(), namespace, &resource);
        Ok(listed(&api, &resource).await?)
    }

    async fn custom(&self, namespace: &str, rule: &Rule) -> Result<Option<Vec<Value>>, ApiError> {
        let resource = resource_of(&rule.api_version(), &rule.kind, &rule.plural);
        let api = match rule.namespaced {
            true => Api::namespaced_with(self.0.clone(), namespace, &resource),
            false => Api::all_with(self.0.clone(), &resource),
        };
        match listed(&api, &resource).await {
            Err(error) if is_not_found(&error) => Ok(None),
            listed => Ok(Some(listed?)),
        }
    }

    async fn namespace(&self, name: &str) -> Result<Option<Value>, ApiError> {
        let api: Api<Namespace> = Api::all(self.0.clone());
        // Metadata says of itself that it is nothing else.
        let named = |found: PartialObjectMeta<Namespace>| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": found.metadata});
        Ok(api.get_metadata_opt(name).await?.map(named))
    }
}

async fn listed(api: &Api<DynamicObject>, resource: &ApiResource) -> Result<Vec<Value>, kube::Error> {
    let list = api.list(&ListParams::default()).await?;
    // Items of a list do not say what they are.
    let named = |object: DynamicObject| {
        let mut value = serde_json::to_value(object).expect("an object serialises");
        value["apiVersion"] = resource.api_version.clone().into();
        value["kind"] = resource.kind.clone().into();
        value
    };
    Ok(list.items.into_iter().map(named).collect())
}

/// The kinds that are asked for.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(_, kind, _)| *kind)
}
