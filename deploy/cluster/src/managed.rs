//! The injector with an authority of its own: webhook, issuer, and what looks after both.

use std::{future::Future, pin::pin, time::Duration};

use thiserror::Error;
use tidelock_injector::{
    IdentityFrom,
    server::{Authorities, Extras, ServeError, ServerConfig, run_with},
};
use tidelock_proto::identity::TrustDomain;

use crate::{
    api::{AuthorityCalls, IdentityCalls},
    authority::{Care, Ends, KeepError, Keeper},
    identity::{Issuer, Policy, routes},
};

/// What it is to look after.
#[derive(Debug, Clone)]
pub struct Managed {
    /// Its names in DNS; pods use the first. Not empty.
    pub hosts: Vec<String>,
    /// Who may be what.
    pub policy: Policy,
    /// The domain of the names in certificates.
    pub domain: TrustDomain,
    /// How long identities are valid.
    pub validity: Duration,
    /// How the authority is looked after.
    pub care: Care,
}

/// Why it ended.
#[derive(Debug, Error)]
pub enum ManagedError {
    /// The certificates.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The server.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Makes or takes the authority, writes the webhook's certificate to where `config` has it, and serves until `shutdown`. Pods get
/// their identities here, unless `config` says otherwise.
pub async fn run<C: AuthorityCalls + IdentityCalls + Clone>(
    calls: C,
    managed: Managed,
    mut config: ServerConfig,
    mut extras: Extras,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ManagedError> {
    let Managed { hosts, policy, domain, validity, care } = managed;
    let url = format!("https://{}", hosts.first().map_or("localhost", String::as_str));
    let keeper = Keeper::begin(calls.clone(), hosts, config.certificate.clone(), care).await?;
    let trusted = keeper.trusted();
    extras.registry.register_collector(Box::new(Ends::new(keeper.trusted(), care.rotation)));
    if config.injection.identity_from.is_none() {
        let now = keeper.trusted();
        config.injection.identity_from = Some(IdentityFrom { url, authorities: now().own.clone() });
        extras.authorities = Some(Authorities::new(move || now().own.clone()));
    }
    let issuer = Issuer { calls, policy, trusted: Box::new(trusted), domain, validity };
    extras.routes = extras.routes.merge(routes(issuer, &mut extras.registry));
    let serving = pin!(run_with(config, extras, shutdown));
    tokio::select! {
        ended = serving => Ok(ended?),
        error = keeper.keep() => Err(error.into()),
    }
}
