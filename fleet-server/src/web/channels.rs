//! Notification channels.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::policy::Severity;
use serde::Deserialize;
use serde_json::json;

use super::access::Actor;
use super::admin_views::ChannelView;
use super::alerts::id_of;
use super::error::ApiError;
use super::{Answer, body_of};
use crate::names::UserName;
use crate::notify;
use crate::secret;
use crate::server::Shared;
use crate::store::{self, Channel, ChannelConfig, Format, Matcher};

/// The longest address, in bytes.
const URL_MAX: usize = 2048;

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let channels = shared.store.read(store::channels).await?;
    let views: Vec<_> = channels.iter().map(ChannelView::from).collect();
    Ok(Json(json!({ "channels": views })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChannelRequest {
    name: String,
    url: String,
    format: Option<Format>,
    ca_pem: Option<String>,
    severity: Option<String>,
    matcher: Option<Matcher>,
    per_minute: Option<u32>,
}

/// Makes a channel; the secret that signs its posts is in this answer and nowhere else.
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    body: Result<Json<ChannelRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let (name, config) = checked(body_of(body)?)?;
    let secret = secret::random();
    let audit = actor.audit(&shared, "channel.create", name.as_str(), config.url.as_str());
    let (by, kept) = (actor.who, secret.clone());
    let id = audit.write(&shared, move |c| store::add_channel(c, name.as_str(), &config, &kept, &by));
    let id = id.await?.ok_or_else(|| {
        let public = "there is a channel of this name, or as many as may be";
        ApiError::new(StatusCode::CONFLICT, "exists", public, "choose another name, or remove one")
    })?;
    shared.reload_standing().await?;
    Ok((StatusCode::CREATED, Json(json!({ "id": id, "secret": secret }))).into_response())
}

pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = id_of(&id)?;
    let audit = actor.audit(&shared, "channel.delete", id.to_string(), "");
    let there = audit.write(&shared, move |c| store::remove_channel(c, id));
    if !there.await? {
        return Err(ApiError::not_found("channel"));
    }
    shared.reload_standing().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Posts a test now and says what became of it.
pub(super) async fn test(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer {
    let channel = channel_of(&shared, &id).await?;
    match notify::test(&shared, &channel).await {
        Ok(()) => Ok(Json(json!({ "delivered": true }))),
        Err(why) => {
            let hint = "check the channel's address and certificates";
            Err(ApiError::new(StatusCode::BAD_GATEWAY, "not_delivered", why, hint))
        }
    }
}

async fn channel_of(shared: &Shared, id: &str) -> Result<Channel, ApiError> {
    let id = id_of(id)?;
    let channel = shared.store.read(move |c| store::channel(c, id)).await?;
    channel.ok_or_else(|| ApiError::not_found("channel"))
}

fn checked(request: ChannelRequest) -> Result<(UserName, ChannelConfig), ApiError> {
    let name = UserName::parse(&request.name)
        .map_err(|_| ApiError::bad_request("a channel's name is 1 to 64 characters of a-z, 0-9 and -"))?;
    let host = ["https://", "http://"].iter().find_map(|scheme| request.url.strip_prefix(scheme));
    if !host.is_some_and(|host| !host.is_empty() && !host.starts_with('/')) || request.url.len() > URL_MAX {
        return Err(ApiError::bad_request("url must begin with https:// or http:// and a host"));
    }
    if request.ca_pem.as_deref().is_some_and(|pem| !notify::check_ca(pem)) {
        return Err(ApiError::bad_request("ca_pem holds no certificate"));
    }
    let severity = request.severity.unwrap_or_else(|| "HIGH".into());
    let severity = Severity::from_word(&severity)
        .ok_or_else(|| ApiError::bad_request("a severity is MEDIUM, HIGH or CRITICAL"))?;
    let per_minute = request.per_minute.unwrap_or(20);
    if !(1..=1000).contains(&per_minute) {
        return Err(ApiError::bad_request("per_minute is from 1 to 1000"));
    }
    let config = ChannelConfig {
        url: request.url,
        format: request.format.unwrap_or(Format::Json),
        ca_pem: request.ca_pem,
        severity: severity.as_str().into(),
        matcher: request.matcher.unwrap_or_default(),
        per_minute,
    };
    Ok((name, config))
}
