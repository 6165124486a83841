//! What bringing a workload somewhere asks: objects as they are to be, what is there already, and the end of what is not to
//! stay. It asks as the person who runs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::KubeConfigOptions,
};
use serde::Serialize;
use serde_json::{Value, json};
use tidelock_manifests::KINDS;

use super::ApiError;

/// Whose fields these are, to the API server.
const MANAGER: &str = "tidelock";
/// What is made for a while and is nobody's workload: API version, kind, plural.
const MADE: &[(&str, &str, &str)] =
    &[("batch/v1", "Job", "jobs"), ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")];

/// The calls to a cluster that a workload is brought to, or rests in.
pub trait ApplyCalls: Send + Sync {
    /// Makes an object what it is to be, whoever else has a say in its fields.
    fn apply(&self, object: &Value) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// The kinds of an API version (`cert-manager.io/v1`) that the cluster has in its namespaces.
    fn kinds(&self, version: &str) -> impl Future<Output = Result<BTreeSet<String>, ApiError>> + Send;
    /// An object as it is now, if it is there.
    fn read(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<Value>, ApiError>> + Send;
    /// A namespace, if it is there.
    fn namespace(&self, name: &str) -> impl Future<Output = Result<Option<Value>, ApiError>> + Send;
    /// Creates a namespace; a conflict says that it is there.
    fn create_namespace(&self, namespace: &Value) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// The pods with these labels, as a selector writes them.
    fn pods(
        &self,
        namespace: &str,
        selector: &str,
    ) -> impl Future<Output = Result<Vec<Value>, ApiError>> + Send;
    /// Says how many pods a workload is to have.
    fn scale(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        replicas: i64,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// Begins to remove an object and what it has made; that it is not there is no error.
    fn remove(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// Begins to remove a namespace with all that is in it; that it is not there is no error.
    fn remove_namespace(&self, name: &str) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// The calls over a client.
#[derive(Clone)]
pub struct ApplyApi {
    client: Client,
    /// What the cluster has said of its API versions: kind and plural of each.
    known: Arc<Mutex<BTreeMap<String, BTreeMap<String, String>>>>,
}

impl ApplyApi {
    /// Calls through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, known: Arc::default() }
    }

    /// Plurals of an API version's kinds. What is not there is no error, and is asked for again.
    async fn plurals(&self, version: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(version) {
            return Ok(found.clone());
        }
        let list = match self.client.list_api_group_resources(version).await {
            Err(error) if is_not_found(&error) => return Ok(BTreeMap::new()),
            list => list?,
        };
        // `certificates/status` is a part of one.
        let whole = list.resources.into_iter().filter(|one| one.namespaced && !one.name.contains('/'));
        let found: BTreeMap<String, String> = whole.map(|one| (one.kind, one.name)).collect();
        known().insert(version.to_owned(), found.clone());
        Ok(found)
    }

    /// How an object is asked for.
    async fn resource(&self, object: &Value) -> Result<ApiResource, ApiError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let own = |known: &&(&str, &str, &str)| known.0 == version && known.1 == kind;
        if let Some((version, kind, plural)) = KINDS.iter().chain(MADE).find(own) {
            return Ok(resource_of(version, kind, plural));
        }
        let plurals = self.plurals(&version).await?;
        let plural = plurals.get(&kind).ok_or_else(|| ApiError::Kind(format!("{kind} of {version}")))?;
        Ok(resource_of(&version, &kind, plural))
    }

    fn of(&self, kind: &str, namespace: &str) -> Result<Api<DynamicObject>, ApiError> {
        let resource = resource(kind).or_else(|| named(MADE, kind));
        let resource = resource.ok_or_else(|| ApiError::Kind(kind.to_owned()))?;
        Ok(Api::namespaced_with(self.client.clone(), namespace, &resource))
    }
}

impl ApplyCalls for ApplyApi {
    async fn apply(&self, object: &Value) -> Result<(), ApiError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let meta = &object["metadata"];
        let resource = self.resource(object).await?;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &text(&meta["namespace"]), &resource);
        let parameters = PatchParams::apply(MANAGER).force();
        api.patch(&text(&meta["name"]), &parameters, &Patch::Apply(object)).await?;
        Ok(())
    }

    async fn kinds(&self, version: &str) -> Result<BTreeSet<String>, ApiError> {
        Ok(self.plurals(version).await?.into_keys().collect())
    }

    async fn read(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>, ApiError> {
        Ok(self.of(kind, namespace)?.get_opt(name).await?.map(value))
    }

    async fn namespace(&self, name: &str) -> Result<Option<Value>, ApiError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        Ok(api.get_opt(name).await?.map(value))
    }

    async fn create_namespace(&self, namespace: &Value) -> Result<(), ApiError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace: Namespace = serde_json::from_value(namespace.clone())
            .map_err(|error| ApiError::Kind(format!("Namespace ({error})")))?;
        api.create(
            &PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() },
            &namespace,
        )
        .await?;
        Ok(())
    }

    async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>, ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let list = api.list(&ListParams::default().labels(selector)).await?;
        Ok(list.items.into_iter().map(value).collect())
    }

    async fn scale(&self, kind: &str, namespace: &str, name: &str, replicas: i64) -> Result<(), ApiError> {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.of(kind, namespace)?.patch_scale(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<(), ApiError> {
        gone(self.of(kind, namespace)?.delete(name, &DeleteParams::background()).await.map(drop))
    }

    async fn remove_namespace(&self, name: &str) -> Result<(), ApiError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        gone(api.delete(name, &DeleteParams::background()).await.map(drop))
    }
}

fn value(object: impl Serialize) -> Value {
    serde_json::to_value(object).expect("an object serialises")
}

/// What is not there needs not be removed.
fn gone(removed: Result<(), kube::Error>) -> Result<(), ApiError> {
    match removed {
        Err(error) if is_not_found(&error) => Ok(()),
        removed => Ok(removed?),
    }
}

pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// How a kind is asked for.
pub(super) fn resource(kind: &str) -> Option<ApiResource> {
    named(KINDS, kind)
}

fn named(kinds: &[(&str, &str, &str)], kind: &str) -> Option<ApiResource> {
    let (version, kind, plural) = kinds.iter().find(|(_, known, _)| *known == kind)?;
    Some(resource_of(version, kind, plural))
}

pub(super) fn resource_of(version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, only) = version.split_once('/').unwrap_or(("", version));
    ApiResource {
        group: group.to_owned(),
        version: only.to_owned(),
        api_version: version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// A client for a context of the kubeconfig.
pub async fn connect_to(context: Option<String>) -> Result<Client, ApiError> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = Config::from_kubeconfig(&options).await;
    Ok(Client::try_from(config.map_err(|error| ApiError::NoCluster(error.to_string()))?)?)
}
