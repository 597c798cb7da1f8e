//! Notification channels.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use models::policy::Severity;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::Answer;
use super::access::Actor;
use super::admin_views::ChannelView;
use super::answers::{ChannelList, DeliveredView, MadeChannelView};
use super::error::{ApiError, Problem};
use super::extract::{Body, Id, object};
use super::suppressions::check_score;
use super::words::SeverityWord;
use crate::names::UserName;
use crate::notify;
use crate::secret;
use crate::server::Shared;
use crate::store::{self, ChannelConfig, Format, MailConfig, Matcher};
use crate::trust;

/// The longest address, in bytes.
const URL_MAX: usize = 2048;

/// Notification channels.
#[utoipa::path(get, path = "/channels", tag = "channels", responses((status = 200, description = "Done.", body = ChannelList)))]
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let channels = shared.store.read(store::channels).await?;
    let views: Vec<_> = channels.iter().map(ChannelView::from).collect();
    Ok(Json(json!(ChannelList { channels: views })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChannelRequest {
    name: UserName,
    #[schema(pattern = r"^(https?|syslog\+(tls|tcp)|smtps|smtp\+starttls)://[^/]", max_length = 2048)]
    url: String,
    format: Option<Format>,
    ca_pem: Option<String>,
    /// From whom and for whom, with a mail server's address.
    #[serde(default, deserialize_with = "object")]
    mail: Option<MailConfig>,
    /// At least so severe; HIGH by default.
    severity: Option<SeverityWord>,
    #[serde(default, deserialize_with = "object")]
    matcher: Option<Matcher>,
    /// From 1 to 1000; 20 by default.
    #[schema(minimum = 1, maximum = 1000)]
    per_minute: Option<u32>,
}

/// Makes a channel; the secret that signs its posts is in this answer and nowhere else.
#[utoipa::path(post, path = "/channels", tag = "channels", request_body = ChannelRequest, responses((status = 201, description = "Made.", body = MadeChannelView), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Body(body): Body<ChannelRequest>,
) -> Result<Response, ApiError> {
    let (name, config) = checked(body)?;
    let secret = secret::random();
    let audit = actor.audit(&shared, "channel.create", name.as_str(), config.url.as_str());
    let (by, kept) = (actor.who, secret.clone());
    let id = audit.write(&shared, move |c| store::add_channel(c, name.as_str(), &config, &kept, &by));
    let id = id.await?.ok_or_else(|| {
        let public = "there is a channel of this name, or as many as may be";
        ApiError::new(StatusCode::CONFLICT, "exists", public, "choose another name, or remove one")
    })?;
    shared.reload_standing().await?;
    Ok((StatusCode::CREATED, Json(MadeChannelView { id, secret })).into_response())
}

/// Ends a channel, with what waits.
#[utoipa::path(delete, path = "/channels/{id}", tag = "channels", params(("id" = u64, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    let audit = actor.audit(&shared, "channel.delete", id.to_string(), "");
    let there = audit.write(&shared, move |c| store::remove_channel(c, id));
    if !there.await? {
        return Err(ApiError::not_found("channel"));
    }
    shared.reload_standing().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Posts a test now and says what became of it.
#[utoipa::path(post, path = "/channels/{id}/test", tag = "channels", params(("id" = u64, Path)), responses((status = 200, description = "Done.", body = DeliveredView)))]
pub(super) async fn test(State(shared): State<Arc<Shared>>, Id(id): Id) -> Answer {
    let channel = shared.store.read(move |c| store::channel(c, id)).await?;
    let channel = channel.ok_or_else(|| ApiError::not_found("channel"))?;
    let error = notify::test(&shared, &channel).await.err();
    Ok(Json(json!(DeliveredView { delivered: error.is_none(), error })))
}

fn checked(request: ChannelRequest) -> Result<(UserName, ChannelConfig), ApiError> {
    let by_url = match request.url.split("://").next() {
        Some("syslog+tls" | "syslog+tcp") => Format::Syslog,
        Some("smtps" | "smtp+starttls") => Format::Mail,
        _ => Format::Json,
    };
    let format = request.format.unwrap_or(by_url);
    if request.url.len() > URL_MAX {
        return Err(ApiError::bad_request(format!("url is at most {URL_MAX} bytes")));
    }
    if let Some(problem) = notify::problem(&request.url, format, request.mail.as_ref()) {
        return Err(ApiError::unprocessable(problem));
    }
    if request.ca_pem.as_deref().is_some_and(|pem| trust::roots(Some(pem)).is_err()) {
        return Err(ApiError::unprocessable("ca_pem holds no certificate"));
    }
    let severity: Severity = request.severity.unwrap_or(SeverityWord::High).into();
    let per_minute = request.per_minute.unwrap_or(20);
    if !(1..=1000).contains(&per_minute) {
        return Err(ApiError::bad_request("per_minute is from 1 to 1000"));
    }
    let matcher = request.matcher.unwrap_or_default();
    check_score(&matcher)?;
    let config = ChannelConfig {
        url: request.url,
        format,
        ca_pem: request.ca_pem,
        mail: request.mail,
        severity: severity.as_str().into(),
        matcher,
        per_minute,
    };
    Ok((request.name, config))
}
