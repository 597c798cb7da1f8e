//! Users and their tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::program::hex;
use serde::Deserialize;
use serde_json::json;

use super::access::Actor;
use super::admin_views::UserView;
use super::error::ApiError;
use super::{Answer, body_of};
use crate::access::{self, Principal, Role};
use crate::clock;
use crate::names::UserName;
use crate::secret;
use crate::server::Shared;
use crate::store::{self, Changed};

/// The longest label of a token, in characters.
const LABEL_MAX: usize = 100;

/// Who asks.
pub(super) async fn me(axum::Extension(principal): axum::Extension<Principal>) -> Answer {
    Ok(Json(json!({ "name": principal.name, "role": principal.role.as_str() })))
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let users = shared.store.read(store::users).await?;
    let views: Vec<_> = users.iter().map(UserView::from).collect();
    Ok(Json(json!({ "users": views })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserRequest {
    role: String,
}

/// Makes a user, or gives one another role.
pub(super) async fn put(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(name): Path<String>,
    body: Result<Json<UserRequest>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let user = name_of(&name)?;
    let role = role_of(&body_of(body)?.role)?;
    let audit = actor.audit(&shared, "user.set", user.as_str(), role.as_str());
    let done = audit.write(&shared, move |c| match store::set_role(c, &user, role)? {
        Changed::Missing => store::add_user(c, &user, role, clock::unix_ms()),
        done => Ok(done),
    });
    answer(done.await?, "user")
}

pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let user = name_of(&name)?;
    let audit = actor.audit(&shared, "user.delete", user.as_str(), "");
    answer(audit.write(&shared, move |c| store::remove_user(c, &user)).await?, "user")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApiTokenRequest {
    label: String,
    ttl_s: Option<u64>,
}

/// Makes a token; its text is in this answer and nowhere else.
pub(super) async fn create_token(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(name): Path<String>,
    body: Result<Json<ApiTokenRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let user = name_of(&name)?;
    let body = body_of(body)?;
    if body.label.chars().count() > LABEL_MAX || body.label.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!("a label is at most {LABEL_MAX} printable characters")));
    }
    let token = secret::random();
    let hash = secret::hash(&token);
    let now_ms = clock::unix_ms();
    let expires_s = body.ttl_s.map(|ttl_s| (now_ms / 1000).saturating_add(ttl_s));
    let audit = actor.audit(&shared, "user.token.create", user.as_str(), body.label.as_str());
    let done =
        audit.write(&shared, move |c| store::add_api_token(c, &user, hash, &body.label, expires_s, now_ms));
    answer(done.await?, "user")?;
    let made = json!({ "id": hex(&hash[..8]), "token": token, "expires_unix_s": expires_s });
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

pub(super) async fn remove_token(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let user = name_of(&name)?;
    let audit = actor.audit(&shared, "user.token.delete", user.as_str(), id.as_str());
    let done = audit.write(&shared, move |c| store::remove_api_token(c, &user, &id));
    answer(done.await?, "token of this user")
}

fn answer(done: Changed, what: &str) -> Result<StatusCode, ApiError> {
    match done {
        Changed::Done => Ok(StatusCode::NO_CONTENT),
        Changed::Made => Ok(StatusCode::CREATED),
        Changed::Missing => Err(ApiError::not_found(what)),
        Changed::There => Err(ApiError::new(
            StatusCode::CONFLICT,
            "exists",
            format!("there is such a {what}"),
            "choose another",
        )),
        Changed::Full => Err(ApiError::busy("there are as many as may be", "remove some")),
    }
}

fn name_of(text: &str) -> Result<UserName, ApiError> {
    access::user_name(text).map_err(ApiError::bad_request)
}

fn role_of(text: &str) -> Result<Role, ApiError> {
    Role::parse(text).ok_or_else(|| ApiError::bad_request("a role is viewer, analyst or admin"))
}
