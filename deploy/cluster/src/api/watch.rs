//! What looks after pods asks: what there is and what changes, and that people hear of it.

use futures_util::{Stream, StreamExt};
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Namespace, Pod},
        events::v1::Event as Told,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{PartialObjectMeta, PostParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};

use super::ApiError;
use crate::limits;

/// The calls of what looks after pods.
pub trait WatchCalls: Send + Sync {
    /// All pods, and then what changes; it begins anew by itself, later and later if that fails.
    fn pods(&self) -> impl Stream<Item = Result<Event<Pod>, ApiError>> + Send;
    /// The same of the metadata of namespaces.
    fn namespaces(&self) -> impl Stream<Item = Result<Event<PartialObjectMeta<Namespace>>, ApiError>> + Send;
    /// What a ReplicaSet belongs to, if it is there and belongs to something.
    fn maker(
        &self,
        namespace: &str,
        replica_set: &str,
    ) -> impl Future<Output = Result<Option<OwnerReference>, ApiError>> + Send;
    /// Puts an Event into its namespace.
    fn tell(&self, event: Told) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// The calls over a client.
#[derive(Clone)]
pub struct WatchApi(Client);

impl WatchApi {
    /// Calls through `client`.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

fn config() -> watcher::Config {
    watcher::Config::default().page_size(limits::LIST_PAGE)
}

fn failed<K>(event: Result<Event<K>, watcher::Error>) -> Result<Event<K>, ApiError> {
    event.map_err(|error| ApiError::Watch(Box::new(error)))
}

impl WatchCalls for WatchApi {
    fn pods(&self) -> impl Stream<Item = Result<Event<Pod>, ApiError>> + Send {
        watcher(Api::all(self.0.clone()), config()).default_backoff().map(failed)
    }

    fn namespaces(&self) -> impl Stream<Item = Result<Event<PartialObjectMeta<Namespace>>, ApiError>> + Send {
        watcher(Api::all(self.0.clone()), config()).default_backoff().map(failed)
    }

    async fn maker(&self, namespace: &str, replica_set: &str) -> Result<Option<OwnerReference>, ApiError> {
        let api: Api<ReplicaSet> = Api::namespaced(self.0.clone(), namespace);
        let found = api.get_metadata_opt(replica_set).await?;
        let owners = found.and_then(|set| set.metadata.owner_references).unwrap_or_default();
        Ok(owners.into_iter().find(|owner| owner.controller == Some(true)))
    }

    async fn tell(&self, event: Told) -> Result<(), ApiError> {
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        Api::namespaced(self.0.clone(), &namespace).create(&PostParams::default(), &event).await?;
        Ok(())
    }
}
