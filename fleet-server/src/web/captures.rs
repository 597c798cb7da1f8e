//! What devices recorded, to be replayed elsewhere.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::access::Actor;
use super::error::ApiError;
use super::extract::Words;
use crate::names::DeviceId;
use crate::server::Shared;
use crate::store;

/// The file that a device recorded for an order, for `behaveguard replay`. Who takes it is in the audit log.
#[utoipa::path(get, path = "/devices/{id}/orders/{order}/capture", tag = "orders", params(("id" = DeviceId, Path), ("order" = u64, Path)), responses((status = 200, description = "Done.", body = Vec<u8>, content_type = "application/octet-stream")))]
pub(super) async fn download(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words((device, order)): Words<(DeviceId, u64)>,
) -> Result<Response, ApiError> {
    let owner = device.clone();
    let file = shared.store.search(move |c| store::capture(c, &owner, order)).await?;
    let file = file.ok_or_else(|| ApiError::not_found("whole capture"))?;
    let audit = actor.audit(&shared, "capture.download", device.as_str(), order.to_string());
    audit.write(&shared, |_| Ok(true)).await?;
    let name = format!("attachment; filename=\"{device}-{order}.bgc\"");
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, file).into_response())
}

/// Removes what a device recorded for an order.
#[utoipa::path(delete, path = "/devices/{id}/orders/{order}/capture", tag = "orders", params(("id" = DeviceId, Path), ("order" = u64, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words((device, order)): Words<(DeviceId, u64)>,
) -> Result<StatusCode, ApiError> {
    let audit = actor.audit(&shared, "capture.delete", device.as_str(), order.to_string());
    if !audit.write(&shared, move |c| store::drop_capture(c, &device, order)).await? {
        return Err(ApiError::not_found("capture"));
    }
    Ok(StatusCode::NO_CONTENT)
}
