//! Rules that hide alerts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::Answer;
use super::access::Actor;
use super::answers::{MadeView, PreviewView, RuleList};
use super::error::ApiError;
use super::extract::{Body, Id, object};
use super::views::{AlertView, RuleView};
use crate::clock;
use crate::server::Shared;
use crate::store::{self, Matcher, Rule};

/// The longest reason, in characters.
const WHY_MAX: usize = 1000;

/// Alerts that a preview shows.
const SHOWN_MAX: usize = 20;

/// Rules that hide alerts.
#[utoipa::path(get, path = "/suppressions", tag = "suppressions", responses((status = 200, description = "Done.", body = RuleList)))]
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let rules = shared.store.read(store::rules).await?;
    let views: Vec<_> = rules.iter().map(RuleView::from).collect();
    Ok(Json(json!(RuleList { suppressions: views })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleRequest {
    #[serde(deserialize_with = "object")]
    matcher: Matcher,
    #[schema(min_length = 1, max_length = 1000, pattern = r"\S")]
    why: String,
    /// Seconds from now; for ever when it is missing.
    ttl_s: Option<u64>,
}

/// What a rule would have hidden.
#[utoipa::path(post, path = "/suppressions/preview", tag = "suppressions", request_body = Matcher, responses((status = 200, description = "Done.", body = PreviewView)))]
pub(super) async fn preview(State(shared): State<Arc<Shared>>, Body(body): Body<Matcher>) -> Answer {
    let matcher = checked(body)?;
    let (hidden, of) = shared.store.search(move |c| store::preview(c, &matcher)).await?;
    let text = format!("would have hidden {} of the last {of}", hidden.len());
    let alerts = hidden.iter().take(SHOWN_MAX).map(AlertView::from).collect();
    Ok(Json(json!(PreviewView { hidden: hidden.len(), of, text, alerts })))
}

/// Makes a rule.
#[utoipa::path(post, path = "/suppressions", tag = "suppressions", request_body = RuleRequest, responses((status = 201, description = "Made.", body = MadeView)))]
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Body(body): Body<RuleRequest>,
) -> Result<Response, ApiError> {
    let RuleRequest { matcher, why, ttl_s } = body;
    let matcher = checked(matcher)?;
    if why.trim().is_empty() || why.chars().count() > WHY_MAX {
        return Err(ApiError::bad_request(format!("`why` is 1 to {WHY_MAX} characters")));
    }
    let created_ms = clock::unix_ms();
    let expires_ms = ttl_s.map(|ttl_s| created_ms.saturating_add(ttl_s.saturating_mul(1000)));
    let rule = Rule { id: 0, matcher, why, by: actor.who.clone(), created_ms, expires_ms, hidden: 0 };
    let told = json!(&rule.matcher).to_string();
    let audit = actor.audit(&shared, "suppression.create", rule.why.as_str(), told);
    let id = audit.write(&shared, move |c| store::add_rule(c, &rule));
    let id = id.await?.ok_or_else(|| ApiError::busy("there are as many rules as may be", "remove some"))?;
    shared.reload_standing().await?;
    Ok((StatusCode::CREATED, Json(MadeView { id })).into_response())
}

/// Ends a rule; what it hid stays hidden.
#[utoipa::path(delete, path = "/suppressions/{id}", tag = "suppressions", params(("id" = u64, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    let audit = actor.audit(&shared, "suppression.delete", id.to_string(), "");
    let there = audit.write(&shared, move |c| store::remove_rule(c, id));
    if !there.await? {
        return Err(ApiError::not_found("suppression"));
    }
    shared.reload_standing().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn checked(matcher: Matcher) -> Result<Matcher, ApiError> {
    if !matcher.is_narrow() {
        let public = "a rule that names nothing but a score would hide everything";
        return Err(ApiError::unprocessable(public));
    }
    check_score(&matcher)?;
    Ok(matcher)
}

pub(super) fn check_score(matcher: &Matcher) -> Result<(), ApiError> {
    if matcher.max_score.is_some_and(|score| !(0.0..=100.0).contains(&score)) {
        return Err(ApiError::bad_request("max_score is from 0 to 100"));
    }
    Ok(())
}
