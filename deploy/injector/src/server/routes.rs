//! Paths of the webhook. Which one is asked tells what the API server's selectors have found of the namespace:
//!
//! | path | namespace |
//! | --- | --- |
//! | `/mutate/pod` | without the label `tidelock.dev/inject=true`; the pod has it |
//! | `/mutate/namespace` | with it |
//! | `…/exact` | with `tidelock.dev/allow-exact=true`, too |

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};

use super::{Shared, body};
use crate::{
    names::{ALLOW_EXACT_LABEL, INJECT_LABEL},
    review::review,
};

#[derive(Clone)]
struct Place {
    shared: Arc<Shared>,
    labels: Arc<BTreeMap<String, String>>,
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let paths = [
        ("/mutate/pod", &[][..]),
        ("/mutate/namespace", &[INJECT_LABEL]),
        ("/mutate/pod/exact", &[ALLOW_EXACT_LABEL]),
        ("/mutate/namespace/exact", &[INJECT_LABEL, ALLOW_EXACT_LABEL]),
    ];
    paths.into_iter().fold(Router::new(), |router, (path, labels)| {
        let labels = labels.iter().map(|label| ((*label).to_owned(), "true".to_owned()));
        let place = Place { shared: shared.clone(), labels: Arc::new(labels.collect()) };
        router.merge(Router::new().route(path, post(mutate)).with_state(place))
    })
}

async fn mutate(State(place): State<Place>, body: Body) -> Response {
    let metrics = &place.shared.metrics;
    let begun = Instant::now();
    let body = match body::read(body, &place.shared.memory).await {
        Ok(body) => body,
        Err(refused) => {
            metrics.on_refused(match refused {
                body::Refused::Long => "long",
                body::Refused::Slow => "slow",
                body::Refused::Broken => "broken",
            });
            let status = match refused {
                body::Refused::Long => StatusCode::PAYLOAD_TOO_LARGE,
                body::Refused::Slow => StatusCode::REQUEST_TIMEOUT,
                body::Refused::Broken => StatusCode::BAD_REQUEST,
            };
            // What is left of the body is nobody's: the connection ends with it.
            return (status, [(header::CONNECTION, "close")]).into_response();
        }
    };
    match review(&body.bytes, &place.labels, &place.shared.injection()) {
        Ok(answer) => {
            metrics.on_answer(&answer, begun.elapsed());
            ([(header::CONTENT_TYPE, "application/json")], answer.body).into_response()
        }
        Err(error) => {
            metrics.on_refused("garbage");
            (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response()
        }
    }
}
