//! Enrolment tokens for operators, and certificates for those who have one or hold a key.

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
use super::admin_views::TokenView;
use super::answers::{EnrolledView, MadeTokenView, RenewedView, TokenList};
use super::error::{ApiError, Problem};
use super::extract::{Body, Words};
use crate::clock;
use crate::counters::Counter;
use crate::enrolment::{self, Issued, TTL_MAX_S, USES_MAX, Wanted};
use crate::hub::Event;
use crate::names::{DeviceId, GroupId};
use crate::pki::Signed;
use crate::secret;
use crate::server::Shared;
use crate::store::{self, Enrol, Known};

/// A certificate is renewed when this share of its life has passed.
const RENEW_AFTER: (u64, u64) = (2, 3);

/// Or earlier, by up to this part of its life.
const RENEW_SPREAD: u64 = 6;

/// Enrolment tokens.
#[utoipa::path(get, path = "/tokens", tag = "enrolment", responses((status = 200, description = "Done.", body = TokenList)))]
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let tokens = shared.store.read(store::tokens).await?;
    let views: Vec<_> = tokens.iter().map(TokenView::from).collect();
    Ok(Json(json!(TokenList { tokens: views })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRequest {
    /// The group of who enrols with it; `default` by default.
    group: Option<GroupId>,
    /// Only a device of this name, which replaces the one there is.
    device: Option<DeviceId>,
    /// How many devices; one by default.
    #[schema(minimum = 1, maximum = 100_000)]
    uses: Option<u32>,
    /// Seconds from now; an hour by default.
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl_s: Option<u64>,
}

/// Makes an enrolment token; its text is in this answer and nowhere else.
#[utoipa::path(post, path = "/tokens", tag = "enrolment", request_body = TokenRequest, responses((status = 201, description = "Made.", body = MadeTokenView)))]
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Body(body): Body<TokenRequest>,
) -> Result<Response, ApiError> {
    let (group, device) = (body.group.unwrap_or_default(), body.device);
    let (uses, ttl_s) = (body.uses.unwrap_or(1), body.ttl_s.unwrap_or(3600));
    if !(1..=TTL_MAX_S).contains(&ttl_s) {
        return Err(ApiError::bad_request(format!("ttl_s must be from 1 to {TTL_MAX_S}")));
    }
    if !(1..=USES_MAX).contains(&uses) {
        return Err(ApiError::bad_request(format!("uses must be from 1 to {USES_MAX}")));
    }
    if device.is_some() && uses > 1 {
        return Err(ApiError::unprocessable("uses must be 1 for one device"));
    }
    let (url, ca_pem) = (shared.addresses.web_url.clone(), shared.pki.ca_pem().to_string());
    let now_s = clock::unix_s();
    let wanted = Wanted { group, device, uses, ttl_s };
    let Issued { token, row, target, detail } =
        enrolment::issue(wanted, url, ca_pem, actor.who.clone(), now_s);
    let audit = actor.audit(&shared, "token.create", target, detail);
    let (hash, expires_s) = (row.hash, row.expires_s);
    let stored = audit.write(&shared, move |c| store::add_token(c, &row, now_s));
    if !stored.await? {
        return Err(ApiError::busy("too many tokens are kept", "delete some, or wait for some to expire"));
    }
    let answer =
        MadeTokenView { id: hex(&hash[..8]), token: token.encode(), expires_unix_s: Some(expires_s) };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// Ends an enrolment token.
#[utoipa::path(delete, path = "/tokens/{id}", tag = "enrolment", params(("id" = String, Path)), responses((status = 204, description = "Done.")))]
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    Words(id): Words<String>,
) -> Result<StatusCode, ApiError> {
    let audit = actor.audit(&shared, "token.delete", id.as_str(), "");
    let there = audit.write(&shared, move |c| store::drop_token(c, &id));
    if there.await? { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::not_found("token")) }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EnrolRequest {
    secret: String,
    device: DeviceId,
    csr_pem: String,
}

/// A certificate for a device that has an enrolment token.
#[utoipa::path(post, path = "/enroll", tag = "enrolment", request_body = EnrolRequest, responses((status = 200, description = "Done.", body = EnrolledView), (status = 403, description = "Refused.", body = Problem), (status = 409, description = "Not as things are.", body = Problem)))]
pub(super) async fn enroll(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    body: Result<Body<EnrolRequest>, ApiError>,
) -> Answer {
    let result = enroll_checked(&shared, &actor, body).await;
    if let Err(error) = &result {
        shared.counters.bump(Counter::EnrolRefused);
        log::warn!("an enrolment was refused: {error}");
    }
    result
}

async fn enroll_checked(
    shared: &Shared,
    actor: &Actor,
    body: Result<Body<EnrolRequest>, ApiError>,
) -> Answer {
    let Body(body) = body?;
    let device = body.device;
    // Signed before the token is used, so that a bad request does not cost a use.
    let signed = sign(shared, &device, &body.csr_pem)?;
    let hash = secret::hash(&body.secret);
    let audit =
        actor.named(format!("token {}", hex(&hash[..8]))).audit(shared, "device.enrol", device.as_str(), "");
    let (owner, certificate, counters) = (device.clone(), signed.clone(), Arc::clone(&shared.counters));
    let enrolled = audit
        .write(shared, move |c| store::enrol(c, &counters, hash, &owner, &certificate, clock::unix_ms()));
    let new = "make a new token: behaveguard-fleet token create";
    let refused = |status, code, public, hint| Err(ApiError::new(status, code, public, hint));
    let group = match enrolled.await? {
        Enrol::Done(group) => group,
        Enrol::NoSuchToken => {
            return refused(StatusCode::FORBIDDEN, "no_such_token", "no such token for this device", new);
        }
        Enrol::Used => return refused(StatusCode::FORBIDDEN, "token_used", "the token is used up", new),
        Enrol::Expired => {
            return refused(StatusCode::FORBIDDEN, "token_expired", "the token has expired", new);
        }
        Enrol::Taken => {
            let hint = "choose another name with --device, or replace that device with a token of its own: \
                        behaveguard-fleet token create --device NAME";
            return refused(StatusCode::CONFLICT, "device_exists", "there is a device of this name", hint);
        }
    };
    shared.counters.bump(Counter::Enrolled);
    log::info!("device {device} enrolled in group {group}");
    // Whoever held the name before is not that device any more.
    shared.hub.close(&device);
    shared.hub.tell(Event::Device(device));
    Ok(Json(json!(EnrolledView {
        certificate_pem: &signed.pem,
        renew_after_unix_s: renew_after(shared, &signed),
        ca_pem: shared.pki.ca_pem(),
        mqtt: shared.addresses.mqtt.clone(),
        bundle_keys: vec![hex(&shared.signer.public().0)],
    })))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewRequest {
    device: DeviceId,
    csr_pem: String,
}

/// A new certificate for whoever holds the device's key, which the request's own signature shows. So a gateway that
/// was away for longer than its certificate lasts comes back by itself, and a revoked one does not.
#[utoipa::path(post, path = "/renew", tag = "enrolment", request_body = RenewRequest, responses((status = 200, description = "Done.", body = RenewedView), (status = 403, description = "Refused.", body = Problem)))]
pub(super) async fn renew(
    State(shared): State<Arc<Shared>>,
    body: Result<Body<RenewRequest>, ApiError>,
) -> Answer {
    let result = renew_checked(&shared, body).await;
    match &result {
        Ok(_) => shared.counters.bump(Counter::Renewed),
        Err(error) => {
            shared.counters.bump(Counter::RenewRefused);
            log::warn!("a renewal was refused: {error}");
        }
    }
    result
}

async fn renew_checked(shared: &Shared, body: Result<Body<RenewRequest>, ApiError>) -> Answer {
    let Body(body) = body?;
    let device = body.device;
    let signed = sign(shared, &device, &body.csr_pem)?;
    let (owner, certificate, counters) = (device.clone(), signed.clone(), Arc::clone(&shared.counters));
    let hint = "enrol the device again with a token of its own: behaveguard-fleet token create --device NAME";
    match shared
        .store
        .write(move |c| store::renewed(c, &counters, &owner, &certificate, clock::unix_s()))
        .await?
    {
        Known::Yes => {}
        Known::Revoked => {
            return Err(ApiError::new(StatusCode::FORBIDDEN, "revoked", "the device was revoked", hint));
        }
        // The same answer for both: it does not tell strangers which devices there are.
        Known::No | Known::Replaced => {
            let public = "no device of this name is enrolled with this key";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "not_enrolled", public, hint));
        }
    }
    log::info!("the certificate of device {device} was renewed");
    let renew_after_unix_s = renew_after(shared, &signed);
    Ok(Json(json!(RenewedView { certificate_pem: &signed.pem, renew_after_unix_s })))
}

fn sign(shared: &Shared, device: &DeviceId, csr_pem: &str) -> Result<Signed, ApiError> {
    Ok(shared.pki.sign_device(device, csr_pem, clock::unix_s(), shared.config.certificate_life())?)
}

/// When the device should renew, seconds since 1970: those that were enrolled together do not come together.
fn renew_after(shared: &Shared, signed: &Signed) -> u64 {
    let life_s = shared.config.certificate_life().as_secs();
    let spread = life_s * u64::from(signed.sha256[0]) / 256 / RENEW_SPREAD;
    clock::unix_s() + life_s * RENEW_AFTER.0 / RENEW_AFTER.1 - spread
}
