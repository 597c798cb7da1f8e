//! Alerts.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::json;

use super::Answer;
use super::error::ApiError;
use super::views::AlertView;
use crate::server::Shared;
use crate::store;

/// Rows of one answer at most.
const ROWS_MAX: u32 = 1000;

/// Which part of a list that grows at its end.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    after: Option<u64>,
    limit: Option<u32>,
    device: Option<String>,
}

impl Part {
    /// From a request, within its bounds.
    pub(super) fn of(
        query: Result<Query<Self>, QueryRejection>,
    ) -> Result<(Option<u64>, u32, Option<String>), ApiError> {
        let Query(Self { after, limit, device }) =
            query.map_err(|error| ApiError::bad_request(error.body_text()))?;
        Ok((after, limit.unwrap_or(100).clamp(1, ROWS_MAX), device))
    }
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<Part>, QueryRejection>,
) -> Answer {
    let (after, limit, device) = Part::of(query)?;
    let alerts = shared.store.read(move |c| store::alerts(c, after, limit, device.as_deref())).await?;
    let next = alerts.last().map(|alert| alert.id).or(after).unwrap_or(0);
    let views: Vec<_> = alerts.iter().map(AlertView::from).collect();
    Ok(Json(json!({ "alerts": views, "next_after": next })))
}

pub(super) async fn one(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer {
    let id = id.parse().map_err(|_| ApiError::bad_request("an alert's id is a number"))?;
    let alert = shared.store.read(move |c| store::alert(c, id)).await?;
    let alert = alert.ok_or_else(|| ApiError::not_found("alert"))?;
    Ok(Json(json!(AlertView::from(&alert))))
}
