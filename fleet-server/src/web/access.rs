//! Whose request it is, whether it is within the client's rate, and whether that user may do this.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use crate::store::Connection;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::rates::{Client, Left};
use crate::access::{Principal, Role};
use crate::clock;
use crate::counters::{Counter, Counters};
use crate::secret;
use crate::server::Shared;
use crate::store::{self, AuditRow, Change, StoreError};

/// From where a connection comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

fn peer(request: &Request) -> IpAddr {
    request.extensions().get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0)
}

/// Lets requests with a good token through, each client at its rate.
pub(super) async fn authenticate(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Response {
    let hash = token_of(request.headers()).map(secret::hash);
    let principal = match hash {
        Some(hash) => match who(&shared, hash).await {
            Ok(principal) => principal,
            Err(error) => return ApiError::from(error).into_response(),
        },
        None => None,
    };
    let client = match (hash, &principal) {
        (Some(hash), Some(_)) => Client::Token(hash),
        _ => Client::Address(peer(&request)),
    };
    let left = shared.rates.take(client, clock::unix_ms());
    if !left.is_enough() {
        return too_many(&shared, left);
    }
    let mut response = match principal {
        Some(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        None => {
            shared.counters.bump(Counter::WebUnauthorized);
            unauthorized()
        }
    };
    left.tell(response.headers_mut());
    response
}

/// The token of a request. A browser's WebSocket cannot send it as everybody else does and names it among its protocols.
pub(super) fn token_of(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match text(header::AUTHORIZATION) {
        Some(given) => given.strip_prefix("Bearer "),
        None => {
            let mut protocols = text(header::SEC_WEBSOCKET_PROTOCOL)?.split(',');
            protocols.find_map(|protocol| protocol.trim().strip_prefix("token."))
        }
    }
}

async fn who(shared: &Shared, hash: [u8; 32]) -> Result<Option<Principal>, StoreError> {
    if shared.pki.is_owner_token(&hash) {
        return Ok(Some(Principal::owner()));
    }
    let now_ms = clock::unix_ms();
    let found = shared.store.read(move |c| store::principal(c, hash, now_ms / 1000)).await?;
    let Some((principal, stale)) = found else { return Ok(None) };
    if stale {
        // Nobody waits for it, and it is told again with the next request.
        drop(shared.store.submit(move |c| store::token_used(c, hash, now_ms)).await?);
    }
    Ok(Some(principal))
}

/// Lets anyone through who did not fail too often: 5,000 gateways behind one address may enrol in one minute, and
/// guessing is slow.
pub(super) async fn limit_failures(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let client = Client::Address(peer(&request));
    let left = shared.rates.look(client, clock::unix_ms());
    if !left.is_enough() {
        return too_many(&shared, left);
    }
    let response = next.run(request).await;
    if response.status().is_client_error() {
        shared.rates.take(client, clock::unix_ms());
    }
    response
}

/// Lets those through who have at least this role.
pub(super) async fn require(
    State((shared, least)): State<(Arc<Shared>, Role)>,
    request: Request,
    next: Next,
) -> Response {
    let has = request.extensions().get::<Principal>().map(|principal| principal.role);
    if has.is_some_and(|role| role >= least) {
        return next.run(request).await;
    }
    shared.counters.bump(Counter::WebForbidden);
    let public = format!("this needs the role {least}");
    let hint = "ask an administrator: behaveguard-fleet user role";
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", public, hint).into_response()
}

fn unauthorized() -> Response {
    let public = "a valid token is needed";
    let hint = "send `Authorization: Bearer <token>`; the owner's is in api.token in the server's state folder, others \
                are made with `behaveguard-fleet user token`";
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", public, hint).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn too_many(shared: &Shared, left: Left) -> Response {
    shared.counters.bump(Counter::WebRateLimited);
    let public = format!("more than {} requests in a minute", shared.config.requests_per_minute);
    let hint = "wait as long as Retry-After says, or follow /api/v1/stream instead of asking again and again";
    let mut response =
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", public, hint).into_response();
    left.tell(response.headers_mut());
    response
}

/// Who asks for a change, as the audit log names them.
#[derive(Clone, Debug)]
pub(super) struct Actor {
    pub(super) who: String,
    from: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let who =
            parts.extensions.get::<Principal>().map_or_else(String::new, |principal| principal.name.clone());
        let from = parts.extensions.get::<Peer>().map_or_else(String::new, |peer| peer.0.to_string());
        Ok(Self { who, from })
    }
}

/// An entry of the audit log that is put together with the change that it tells of.
pub(super) struct Audit {
    row: AuditRow,
    counters: Arc<Counters>,
    max: u32,
}

impl Actor {
    /// The entry for a change.
    pub(super) fn audit(
        &self,
        shared: &Shared,
        action: &'static str,
        target: impl Into<String>,
        detail: impl Into<String>,
    ) -> Audit {
        let row = AuditRow {
            id: 0,
            unix_ms: clock::unix_ms(),
            who: self.who.clone(),
            from: self.from.clone(),
            action: action.into(),
            target: target.into(),
            detail: detail.into(),
        };
        Audit { row, counters: Arc::clone(&shared.counters), max: shared.config.audit_max }
    }

    /// From where.
    pub(super) fn from(&self) -> &str {
        &self.from
    }

    /// The same for someone without a token, e.g. a device that enrols.
    pub(super) fn named(&self, who: impl Into<String>) -> Self {
        Self { who: who.into(), from: self.from.clone() }
    }
}

impl Audit {
    /// Does a change and, when anything was changed, puts the entry; both or neither.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn write<T: Change + Send + 'static>(
        self,
        shared: &Shared,
        change: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let job = move |c: &Connection| {
            let done = change(c)?;
            if done.is_done() {
                store::put_audit(c, &self.counters, &self.row, self.max)?;
            }
            Ok(done)
        };
        shared.store.write(job).await
    }
}
