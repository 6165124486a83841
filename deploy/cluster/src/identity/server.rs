//! The issuer behind the injector's HTTPS port.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::{BodyExt, Limited};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde_json::json;
use tidelock_proto::{
    identity::TrustDomain,
    pki::{PkiError, Validity},
};
use tokio::{sync::Semaphore, time::timeout};
use tracing::{info, warn};

use super::{Ask, Denied, Given, PATH, Policy, grant, who};
use crate::{
    api::{ApiError, IdentityCalls},
    authority::Trusted,
    limits,
};

/// What signs for pods.
pub struct Issuer<C> {
    /// The calls behind it.
    pub calls: C,
    /// Who may be what.
    pub policy: Policy,
    /// The authority as it is now.
    pub trusted: Box<dyn Fn() -> Arc<Trusted> + Send + Sync>,
    /// The domain of the names.
    pub domain: TrustDomain,
    /// How long certificates are valid.
    pub validity: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

struct Shared<C> {
    issuer: Issuer<C>,
    room: Semaphore,
    answered: Family<Outcome, Counter>,
}

/// Why an identity was not given.
enum Refused {
    /// The request cannot be read.
    Unreadable,
    /// There is no token.
    NoToken,
    /// It was denied.
    Denied(Denied),
    /// The signing request is none.
    Request(PkiError),
    /// The API could not be asked.
    Api(ApiError),
    /// Others are before it.
    Busy,
}

/// The path of the issuer; what it counts goes to `registry`.
pub fn routes<C: IdentityCalls>(issuer: Issuer<C>, registry: &mut Registry) -> Router {
    let answered = Family::<Outcome, Counter>::default();
    registry.register("identities", "Requests for an identity, by outcome", answered.clone());
    let room = Semaphore::new(limits::REQUESTS_AT_ONCE);
    Router::new().route(PATH, post(answer::<C>)).with_state(Arc::new(Shared { issuer, room, answered }))
}

async fn answer<C: IdentityCalls>(
    State(shared): State<Arc<Shared<C>>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let judged = async {
        let _turn = shared.room.acquire().await.map_err(|_| Refused::Busy)?;
        give(&shared.issuer, &headers, body).await
    };
    let judged = timeout(limits::REQUEST_TIMEOUT, judged).await.unwrap_or(Err(Refused::Busy));
    let count = |outcome| shared.answered.get_or_create(&Outcome { outcome }).inc();
    let (outcome, status, why) = match judged {
        Ok(given) => {
            count("given");
            return Json(given).into_response();
        }
        Err(Refused::Unreadable) => ("unreadable", StatusCode::BAD_REQUEST, "no request".to_owned()),
        Err(Refused::Request(error)) => ("unreadable", StatusCode::BAD_REQUEST, error.to_string()),
        Err(Refused::NoToken) => ("denied", StatusCode::UNAUTHORIZED, "a token is missing".to_owned()),
        Err(Refused::Denied(why @ (Denied::Token(_) | Denied::Audience | Denied::NotAPod))) => {
            ("denied", StatusCode::UNAUTHORIZED, why.to_string())
        }
        Err(Refused::Denied(why)) => ("denied", StatusCode::FORBIDDEN, why.to_string()),
        Err(Refused::Busy) => ("failed", StatusCode::SERVICE_UNAVAILABLE, "too busy".to_owned()),
        Err(Refused::Api(error)) => {
            warn!(%error, "cannot judge a request for an identity");
            ("failed", StatusCode::SERVICE_UNAVAILABLE, "the API cannot be asked".to_owned())
        }
    };
    count(outcome);
    // A body that was not read to its end is nobody's: the connection ends with it.
    (status, [(header::CONNECTION, "close")], Json(json!({"error": why}))).into_response()
}

async fn give<C: IdentityCalls>(
    issuer: &Issuer<C>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Given, Refused> {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    let token = token.filter(|token| !token.is_empty() && token.len() <= limits::TOKEN_MAX_BYTES);
    let token = token.ok_or(Refused::NoToken)?;
    let body = Limited::new(body, limits::REQUEST_MAX_BYTES).collect().await;
    let body = body.map_err(|_| Refused::Unreadable)?.to_bytes();
    let ask: Ask = serde_json::from_slice(&body).map_err(|_| Refused::Unreadable)?;
    let status = issuer.calls.review(token).await.map_err(Refused::Api)?;
    let who = who(&status).map_err(Refused::Denied)?;
    let pod = issuer.calls.pod(&who.namespace, &who.pod).await.map_err(Refused::Api)?;
    let granted = grant(&issuer.policy, &who, pod.as_ref(), &ask.wanted).map_err(|why| {
        info!(namespace = %who.namespace, pod = %who.pod, %why, "identity denied");
        Refused::Denied(why)
    })?;
    let trusted = (issuer.trusted)();
    let validity = Validity::starting(std::time::SystemTime::now(), issuer.validity);
    let certificate = trusted.authority.sign(&ask.request, &issuer.domain, &granted, validity);
    let certificate = certificate.map_err(Refused::Request)?;
    info!(namespace = %who.namespace, pod = %who.pod, wanted = ?ask.wanted, "identity given");
    Ok(Given { certificate, authorities: trusted.believed.clone(), issuers: trusted.own.clone() })
}
