//! What a failover asks: objects as they are to be, and whether the workload is ready. It asks as the person who runs it.

use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    config::KubeConfigOptions,
};
use serde_json::Value;
use tidelock_manifests::KINDS;

use super::ApiError;

/// Whose fields these are, to the API server.
const MANAGER: &str = "tidelock";

/// A failover's calls.
pub trait ApplyCalls: Send + Sync {
    /// Makes an object what it is to be, whoever else has a say in its fields.
    fn apply(&self, object: &Value) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// An object as it is now, if it is there.
    fn read(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<Value>, ApiError>> + Send;
}

/// The calls over a client.
#[derive(Clone)]
pub struct ApplyApi(Client);

impl ApplyApi {
    /// Calls through `client`.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    fn of(&self, kind: &str, namespace: &str) -> Result<Api<DynamicObject>, ApiError> {
        let resource = resource(kind).ok_or_else(|| ApiError::Kind(kind.to_owned()))?;
        Ok(Api::namespaced_with(self.0.clone(), namespace, &resource))
    }
}

impl ApplyCalls for ApplyApi {
    async fn apply(&self, object: &Value) -> Result<(), ApiError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let meta = &object["metadata"];
        let api = self.of(&text(&object["kind"]), &text(&meta["namespace"]))?;
        let parameters = PatchParams::apply(MANAGER).force();
        api.patch(&text(&meta["name"]), &parameters, &Patch::Apply(object)).await?;
        Ok(())
    }

    async fn read(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>, ApiError> {
        let found = self.of(kind, namespace)?.get_opt(name).await?;
        Ok(found.map(|object| serde_json::to_value(object).expect("an object serialises")))
    }
}

/// How a kind is asked for.
pub(super) fn resource(kind: &str) -> Option<ApiResource> {
    let (version, kind, plural) = KINDS.iter().find(|(_, known, _)| *known == kind)?;
    let (group, only) = version.split_once('/').unwrap_or(("", version));
    Some(ApiResource {
        group: group.to_owned(),
        version: only.to_owned(),
        api_version: (*version).to_owned(),
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
    })
}

/// A client for a context of the kubeconfig.
pub async fn connect_to(context: Option<String>) -> Result<Client, ApiError> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = Config::from_kubeconfig(&options).await;
    Ok(Client::try_from(config.map_err(|error| ApiError::NoCluster(error.to_string()))?)?)
}
