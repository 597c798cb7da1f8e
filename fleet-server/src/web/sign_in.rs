//! Signing in at an identity provider ([`crate::oidc`]), and out.
//!
//! A browser that goes there keeps one cookie until it is back, and no other.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use models::chain::chain;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::Answer;
use super::access::{Actor, token_of};
use super::answers::SignInView;
use super::error::ApiError;
use super::extract::Asked;
use crate::clock;
use crate::counters::Counter;
use crate::oidc::{Login, OidcError, Person, Provider};
use crate::secret;
use crate::server::Shared;
use crate::store::{self, Changed};

/// What the browser keeps on its way; the prefix keeps other hosts from setting it (RFC 6265bis, section 4.1.3).
const COOKIE: &str = "__Host-behaveguard-sign-in";

/// How long somebody has at the provider, in seconds.
const WAY_S: u32 = 600;

/// How long somebody stays signed in, in seconds.
const SESSION_S: u64 = 12 * 3600;

/// Where people may sign in instead of with a token.
#[utoipa::path(get, path = "/sign-in", tag = "users", responses((status = 200, description = "Done.", body = SignInView)))]
pub(super) async fn how(State(shared): State<Arc<Shared>>) -> Answer {
    let issuer = shared.config.oidc.as_ref().map(|oidc| oidc.issuer.as_str());
    Ok(Json(json!(SignInView { issuer })))
}

/// Sends a browser to the identity provider.
#[utoipa::path(get, path = "/oidc/login", tag = "users", responses((status = 303, description = "To the provider, or back with a reason."), (status = 404, description = "There is none.", body = super::error::Problem)))]
pub(super) async fn begin(State(shared): State<Arc<Shared>>) -> Result<Response, ApiError> {
    let provider = provider(&shared)?;
    let (login, to) = asked(&shared, move || {
        let login = Login::new();
        let to = provider.begin(&login)?;
        Ok((login, to))
    })
    .await
    .map_or_else(|refused| (None, refused), |(login, to)| (Some(login), to));
    let kept = login.map(|login| {
        format!("{COOKIE}={}; Path=/; Max-Age={WAY_S}; Secure; HttpOnly; SameSite=Lax", login.cookie())
    });
    Ok(gone_to(&to, kept))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Came {
    /// What the provider gives for the token.
    code: Option<String>,
    /// What it was sent with.
    state: Option<String>,
    /// Why there is no code (RFC 6749, section 4.1.2.1).
    error: Option<String>,
    /// The same in a sentence.
    error_description: Option<String>,
}

/// Where the identity provider sends a browser back to.
#[utoipa::path(get, path = "/oidc/callback", tag = "users", params(Came), responses((status = 303, description = "To the dashboard, signed in or with a reason."), (status = 404, description = "There is none.", body = super::error::Problem)))]
pub(super) async fn finish(
    State(shared): State<Arc<Shared>>,
    actor: Actor,
    headers: HeaderMap,
    Asked(came): Asked<Came>,
) -> Result<Response, ApiError> {
    let provider = provider(&shared)?;
    let to = match signed_in(&shared, &actor, provider, &headers, came).await {
        Ok(token) => {
            shared.counters.bump(Counter::SignedIn);
            format!("/#token={token}")
        }
        Err(refused) => {
            shared.counters.bump(Counter::SignInRefused);
            refused
        }
    };
    Ok(gone_to(&to, Some(format!("{COOKIE}=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax"))))
}

/// Ends the session whose token is sent; a token that somebody made stays.
#[utoipa::path(delete, path = "/session", tag = "users", responses((status = 204, description = "Done.")))]
pub(super) async fn end(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    if let Some(hash) = token_of(&headers).map(secret::hash) {
        shared.store.write(move |c| store::end_session(c, hash)).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A new token for whoever came back; where to go when nobody is signed in.
async fn signed_in(
    shared: &Arc<Shared>,
    actor: &Actor,
    provider: Arc<Provider>,
    headers: &HeaderMap,
    came: Came,
) -> Result<String, String> {
    if let Some(error) = came.error {
        return Err(back(&format!(
            "the identity provider says: {}",
            came.error_description.unwrap_or(error)
        )));
    }
    let again = "this sign-in was begun elsewhere or took too long: begin again";
    let login = kept_cookie(headers).map(Login::of).ok_or_else(|| back(again))?;
    if came.state != Some(login.state()) {
        return Err(back(again));
    }
    let code = came.code.ok_or_else(|| back(again))?;
    let Person { name, role } = asked(shared, move || provider.finish(&login, &code)).await?;
    let token = secret::random();
    let (hash, now_ms) = (secret::hash(&token), clock::unix_ms());
    let audit = actor.named(name.as_str()).audit(shared, "user.sign_in", name.as_str(), role.as_str());
    let expires_s = now_ms / 1000 + SESSION_S;
    let done = audit.write(shared, move |c| store::sign_in(c, &name, role, hash, expires_s, now_ms)).await;
    match done {
        Ok(Changed::Full) => Err(back("there are as many users as may be: an administrator can remove some")),
        Ok(_) => Ok(token),
        Err(error) => {
            log::error!("signing somebody in: {}", chain(&error));
            Err(back("the server's store failed: try again"))
        }
    }
}

fn provider(shared: &Shared) -> Result<Arc<Provider>, ApiError> {
    shared
        .oidc
        .clone()
        .ok_or_else(|| ApiError::not_found("identity provider: see [oidc] in the configuration"))
}

/// Asks the provider beside everything else; where to go with the reason when that fails.
async fn asked<T: Send + 'static>(
    shared: &Shared,
    ask: impl FnOnce() -> Result<T, OidcError> + Send + 'static,
) -> Result<T, String> {
    let Ok(_place) = shared.sign_ins.try_acquire() else {
        return Err(back("too many people sign in at this moment: try again"));
    };
    let answer = tokio::task::spawn_blocking(ask).await;
    let reason = match answer {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => chain(&error),
        Err(error) => error.to_string(),
    };
    log::warn!("nobody was signed in: {reason}");
    Err(back(&reason))
}

/// The dashboard, which shows why nobody is signed in.
fn back(why: &str) -> String {
    format!("/#refused={}", form_urlencoded::byte_serialize(why.as_bytes()).collect::<String>())
}

fn gone_to(to: &str, cookie: Option<String>) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    let mut add = |name, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            response.headers_mut().insert(name, value);
        }
    };
    add(header::LOCATION, to);
    if let Some(cookie) = cookie {
        add(header::SET_COOKIE, &cookie);
    }
    response
}

fn kept_cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|text| text.split(';')).find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_found_among_others() {
        let cookie = |text: &'static str| {
            let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static(text))]);
            kept_cookie(&headers).map(str::to_owned)
        };
        assert_eq!(cookie("a=1; __Host-behaveguard-sign-in=xyz; b=2").as_deref(), Some("xyz"));
        assert_eq!(cookie("__Host-behaveguard-sign-in-more=xyz"), None);
        assert_eq!(kept_cookie(&HeaderMap::new()), None);
    }

    #[test]
    fn a_reason_stays_in_the_fragment() {
        assert_eq!(back("a b#c?\r\nd"), "/#refused=a+b%23c%3F%0D%0Ad");
    }
}
