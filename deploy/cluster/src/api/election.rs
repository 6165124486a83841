//! What replicas ask to agree who of them does what only one should do.

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::PostParams};

use super::ApiError;

/// The calls of an election.
pub trait ElectionCalls: Send + Sync {
    /// The Lease, if it is there.
    fn lease(&self) -> impl Future<Output = Result<Option<Lease>, ApiError>> + Send;
    /// Creates it; a conflict says that somebody was first.
    fn create_lease(&self, lease: Lease) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// Puts this in its place; a conflict says that it was changed since it was read.
    fn replace_lease(&self, lease: Lease) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// The calls over a client.
#[derive(Clone)]
pub struct ElectionApi {
    client: Client,
    namespace: String,
    name: String,
}

impl ElectionApi {
    /// Calls through `client`, about the Lease of this name.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl ElectionCalls for ElectionApi {
    async fn lease(&self) -> Result<Option<Lease>, ApiError> {
        Ok(self.leases().get_opt(&self.name).await?)
    }

    async fn create_lease(&self, mut lease: Lease) -> Result<(), ApiError> {
        lease.metadata.name = Some(self.name.clone());
        lease.metadata.namespace = Some(self.namespace.clone());
        self.leases().create(&PostParams::default(), &lease).await?;
        Ok(())
    }

    async fn replace_lease(&self, lease: Lease) -> Result<(), ApiError> {
        self.leases().replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(())
    }
}
