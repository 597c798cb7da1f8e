//! Users and their tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::program::hex;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::Answer;
use super::access::Actor;
use super::admin_views::UserView;
use super::answers::{MadeTokenView, MeView, UserList};
use super::error::{ApiError, Problem};
use super::extract::{Body, Words};
use crate::access::{self, Principal, Role};
use crate::clock;
use crate::names::UserName;
use crate::secret;
use crate::server::Shared;
use crate::store::{self, Changed};

/// Who asks.
#[utoipa::path(get, path = "/me", tag = "users", responses((status = 200, description = "Done.", body = MeView)))]
pub(super) async fn me(axum::Extension(principal): axum::Extension<Principal>) -> Answer {
    Ok(Json(json!(MeView { name: &principal.name, role: principal.role })))
}

/// Users and their tokens.
#[utoipa::path(get, path = "/users", tag = "users", responses((status = 200, description = "Done.", body = UserList)))]
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let users = shared.store.read(store::users).await?;
    let views: Vec<_> = users.iter().map(UserView::from).collect();
    Ok(Json(json!(UserList { users: views })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserRequest {
    role: Role,
}

/// Makes a user, or gives one another role.
#[utoipa::path(put, path = "/users/{name}", tag = "users", request_body = UserRequest, params(("name" = UserName, Path)), responses((status = 201, description = "A new user."), (status = 204, description = "Another role."), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn put(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words(name): Words<String>,
    Body(body): Body<UserRequest>,
) -> Result<StatusCode, ApiError> {
    let user = name_of(&name)?;
    let role = body.role;
    let audit = actor.audit(&shared, "user.set", user.as_str(), role.as_str());
    let done = audit.write(&shared, move |c| match store::set_role(c, &user, role)? {
        Changed::Missing => store::add_user(c, &user, role, clock::unix_ms()),
        done => Ok(done),
    });
    answer(done.await?, "user")
}

/// Removes a user with all tokens.
#[utoipa::path(delete, path = "/users/{name}", tag = "users", params(("name" = UserName, Path)), responses((status = 204, description = "Done."), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words(name): Words<String>,
) -> Result<StatusCode, ApiError> {
    let user = name_of(&name)?;
    let audit = actor.audit(&shared, "user.delete", user.as_str(), "");
    answer(audit.write(&shared, move |c| store::remove_user(c, &user)).await?, "user")
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApiTokenRequest {
    /// At most 100 printable characters.
    #[schema(max_length = 100, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    label: String,
    /// Seconds from now; for ever when it is missing.
    ttl_s: Option<u64>,
}

/// Makes a token; its text is in this answer and nowhere else.
#[utoipa::path(post, path = "/users/{name}/tokens", tag = "users", request_body = ApiTokenRequest, params(("name" = UserName, Path)), responses((status = 201, description = "Made.", body = MadeTokenView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn create_token(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words(name): Words<String>,
    Body(body): Body<ApiTokenRequest>,
) -> Result<Response, ApiError> {
    let user = name_of(&name)?;
    access::label(&body.label).map_err(ApiError::bad_request)?;
    let token = secret::random();
    let hash = secret::hash(&token);
    let now_ms = clock::unix_ms();
    let expires_s = body.ttl_s.map(|ttl_s| (now_ms / 1000).saturating_add(ttl_s));
    let audit = actor.audit(&shared, "user.token.create", user.as_str(), body.label.as_str());
    let done =
        audit.write(&shared, move |c| store::add_api_token(c, &user, hash, &body.label, expires_s, now_ms));
    answer(done.await?, "user")?;
    let made = MadeTokenView { id: hex(&hash[..8]), token, expires_unix_s: expires_s };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Ends a token.
#[utoipa::path(delete, path = "/users/{name}/tokens/{id}", tag = "users", params(("name" = UserName, Path), ("id" = String, Path)), responses((status = 204, description = "Done."), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn remove_token(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words((name, id)): Words<(String, String)>,
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
    let name = UserName::parse(text).map_err(|error| ApiError::bad_request(error.to_string()))?;
    if access::is_reserved(&name) {
        let public = format!("`{name}` is a name of the server's own");
        return Err(ApiError::new(StatusCode::CONFLICT, "reserved", public, "choose another name"));
    }
    Ok(name)
}
