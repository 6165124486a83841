//! What the injector's operator decides for all pods.

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The sidecar's image; a pod may name another.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// Where to replicate to, `HOST:PORT`, unless a pod says otherwise.
    pub receiver: Option<String>,
    /// The Secret, in the pod's namespace, with the sidecar's `tls.crt`, `tls.key` and `ca.crt`.
    pub identity_secret: String,
    /// Where sidecars get their identity instead, unless a pod names a Secret.
    pub identity_from: Option<IdentityFrom>,
    /// The same of an operator of the tenant, for filling empty volumes.
    pub restore_secret: String,
    /// Where the injector runs: pods there are left alone, or a broken injector could not be replaced.
    pub own_namespace: Option<String>,
    /// Further namespaces that the API server does not ask about.
    pub excluded_namespaces: Vec<String>,
    /// Of the sidecar, unless a pod says otherwise.
    pub resources: Resources,
}

/// An injector that gives identities to pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFrom {
    /// Its address: `https://HOST[:PORT]`.
    pub url: String,
    /// The authorities that its certificate may be of, PEM.
    pub authorities: String,
}

/// Requests and limits, as Kubernetes writes quantities. What is empty is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// `resources.requests.cpu`
    pub cpu_request: Option<String>,
    /// `resources.limits.cpu`
    pub cpu_limit: Option<String>,
    /// `resources.requests.memory`
    pub memory_request: Option<String>,
    /// `resources.limits.memory`
    pub memory_limit: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            image: concat!("tidelock:", env!("CARGO_PKG_VERSION")).to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            receiver: None,
            identity_secret: "tidelock-sidecar".to_owned(),
            identity_from: None,
            restore_secret: "tidelock-operator".to_owned(),
            own_namespace: None,
            excluded_namespaces: Vec::new(),
            resources: Resources {
                cpu_request: Some("50m".to_owned()),
                cpu_limit: None,
                memory_request: Some("96Mi".to_owned()),
                memory_limit: Some("512Mi".to_owned()),
            },
        }
    }
}
