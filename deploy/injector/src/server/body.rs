//! Bodies, bounded: each in bytes and time, all of them together in memory.
//!
//! A body takes from the common memory what it has sent, not what it says it will: one that is sent slowly keeps no place
//! from the others.

use std::sync::Arc;

use axum::body::Body;
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::limits;

/// A whole body, and its place in the memory.
pub(super) struct Bytes {
    pub(super) bytes: Vec<u8>,
    _place: Option<OwnedSemaphorePermit>,
}

/// Why a body was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is too long.
    Long,
    /// It, or a place in the memory for it, did not come in time.
    Slow,
    /// It broke off.
    Broken,
}

pub(super) async fn read(body: Body, memory: &Arc<Semaphore>) -> Result<Bytes, Refused> {
    timeout(limits::BODY_TIMEOUT, collect(body, memory)).await.unwrap_or(Err(Refused::Slow))
}

async fn collect(mut body: Body, memory: &Arc<Semaphore>) -> Result<Bytes, Refused> {
    let mut bytes = Vec::new();
    let mut place: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refused::Broken)?.into_data() else { continue };
        if bytes.len() + data.len() > limits::BODY_MAX_BYTES {
            return Err(Refused::Long);
        }
        let len = u32::try_from(data.len()).map_err(|_| Refused::Long)?;
        let more = memory.clone().acquire_many_owned(len).await.map_err(|_| Refused::Broken)?;
        match &mut place {
            Some(place) => place.merge(more),
            None => place = Some(more),
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Bytes { bytes, _place: place })
}
